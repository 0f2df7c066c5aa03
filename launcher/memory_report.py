"""What `shardtune plan` says of the memory that training will take on each rank."""

from typing import Any

import torch
from rich.console import Console
from transformers import PretrainedConfig

from data_tools.plan import PackPlan
from launcher.config import RunConfig
from sft.memory import forecast_memory, largest_micro_batch
from sft.model import compute_dtype

GIB = 2**30


def memory_facts(
    config: RunConfig,
    model_config: PretrainedConfig,
    plan: PackPlan,
    added_tokens: int,
    ranks: int,
    gpu_memory: float | None,
) -> dict[str, Any]:
    """The parts of the forecast in bytes, and the largest micro-batch where the memory of a rank is known.

    Args:
        model_config: transformers' configuration of the model.
        added_tokens: of `data.special_tokens`.
        gpu_memory: GiB of each GPU of the machines that will train; None: of the GPU that is here, if there is one.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = None if gpu_memory is None else round(gpu_memory * GIB)
    if memory is None and device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    dtype = compute_dtype(config.model, device)
    if gpu_memory is not None and config.model.dtype == "auto":
        dtype = torch.bfloat16  # what training will choose there
    about = (config.model, model_config, config.train, dtype, ranks)
    pack = (plan.settings.max_length, int(plan.train.trained.max()))
    tokens, labels = (config.train.packs_per_micro_batch * number for number in pack)
    forecast = forecast_memory(*about, tokens, labels, added_tokens)
    facts: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": forecast.parameters,
        "optimizer": forecast.optimizer,
        "gradients": max(forecast.gradients, forecast.backward),
        "activations": forecast.activations,
        "loss_head": forecast.loss_head,
        "peak": forecast.peak,
        "of_rank": memory,
    }
    if memory is not None:
        facts["largest_micro_batch"] = largest_micro_batch(*about, pack, memory, added_tokens)
    return facts


def show_memory(facts: dict[str, Any], config: RunConfig, console: Console) -> None:
    """One line of parts, and one of advice."""
    names = ("parameters", "optimizer", "gradients", "activations", "loss_head")
    parts = ", ".join(f"{name.replace('_', ' ')} {_gib(facts[name])}" for name in names)
    console.print(
        f"memory of a rank, forecast in {facts['dtype']}: {_gib(facts['peak'])} at most ({parts})", highlight=False
    )
    if facts["of_rank"] is None:
        return
    largest, asked = facts["largest_micro_batch"], config.train.packs_per_micro_batch
    if largest is None:
        console.print(
            f"[yellow]a rank has {_gib(facts['of_rank'])}, in which not even one pack fits[/]; set a higher "
            f"train.zero.stage, train.activation_checkpointing=true, a smaller data.max_length, or use more ranks"
        )
    elif largest < asked:
        console.print(
            f"[yellow]a rank has {_gib(facts['of_rank'])}[/]: train.packs_per_micro_batch={asked} will not fit, "
            f"{largest} will"
        )
    elif largest > asked:
        console.print(
            f"a rank has {_gib(facts['of_rank'])}: train.packs_per_micro_batch={largest} fits as well", highlight=False
        )


def _gib(size: int) -> str:
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"
