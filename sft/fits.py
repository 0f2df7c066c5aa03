"""Is there memory for the weights? A rough answer before they are loaded, in place of a killed process after."""

from pathlib import Path

import torch
from transformers import PretrainedConfig

from data_tools.errors import UserError
from sft.config_model import ModelConfig
from sft.own_code import empty_model

_BYTES_NF4 = 0.57
"""Half a byte, and a float32 for every 64 weights, itself in 8 bits (double quantization), rounded up."""


def check_weights_fit(
    config: ModelConfig,
    model_config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    parts: int = 1,
    ranks: int = 1,
    free: int | None = None,
) -> None:
    """Compare the bytes of a model's weights with the free memory of a device.

    Gradients, optimizer and activations come on top.

    Args:
        parts: into which ZeRO-3 splits them, one of which is on the device.
        ranks: that each hold them in this memory.
        free: bytes that are free; None: what is free now.

    Raises:
        UserError: the weights alone do not fit.
    """
    if free is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    needed = weight_bytes(config, model_config, dtype) / parts
    if free is not None and needed * ranks > free:
        for_each = f" for each of the {ranks} ranks of this machine" if ranks > 1 else " a rank" * (parts > 1)
        raise UserError(
            f"the weights of {config.path or 'model.config'} take {needed / 1e9:,.1f} GB{for_each}, and "
            f"this {device.type} has {free / 1e9:,.1f} GB free; choose a smaller model, or a machine with more memory"
            + (", or set train.zero.stage=3, which loads them once" if needed <= free < needed * ranks else "")
            + ("" if config.quantize or config.path is None else ", or set model.lora with model.quantize=nf4")
        )


def weight_bytes(config: ModelConfig, model_config: PretrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of a model's weights, from its shapes alone."""
    model = empty_model(config, model_config)
    head = model.get_output_embeddings()
    linear = {
        id(module.weight)
        for module in model.modules()
        if config.quantize and isinstance(module, torch.nn.Linear) and module is not head
    }
    of_each = {id(weight): _BYTES_NF4 if id(weight) in linear else dtype.itemsize for weight in model.parameters()}
    return int(sum(weight.numel() * of_each[id(weight)] for weight in model.parameters()))


def free_memory() -> int | None:
    """Bytes that processes of this machine or container can still get; None where Linux is not there to say it."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    values = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    free = int(values["MemAvailable"].split()[0]) * 1024
    limit, stat = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat")
    if limit.exists() and stat.exists() and (most := limit.read_text(encoding="utf-8").strip()) != "max":
        used = dict(line.split() for line in stat.read_text(encoding="utf-8").splitlines())
        free = min(free, int(most) - int(used["anon"]) - int(used.get("shmem", 0)))
    return max(0, free)
