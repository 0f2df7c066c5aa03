"""Training steps on one GPU: ours, TRL's, and TRL's with Liger, on the same packs of random tokens.

    python -m tests.benchmarks.gpu_step [--models NAME …] [--lengths 8192 32768] [--trl] [--longest] [--json FILE]
    python -m tests.benchmarks.gpu_step --small                # on a CPU: whether it runs

Needs torch, transformers, deepspeed and pyarrow; for `--trl` also trl 1.16, datasets and liger-kernel. Every case runs
in a process of its own and prints one line of JSON: tokens/s, MFU, peak memory, the parts of our step; out of memory is
a result. Besides: the loss head against its three products, attention against its operations, and with `--longest` the
longest row that fits, doubled from the longest of `--lengths`.
MFU counts what has to be computed: layers on all tokens, the head on trained ones, attention within documents.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import is_flash_attn_2_available

from sft.flops import peak_of_name
from tests.benchmarks.gpu_parts import attention, loss_head

PARTS = {"loss head": loss_head, "attention": attention}

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "SmolLM2-135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "SmolLM3-3B": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 128256,
    },
}


def documents_of(length: int, vocab_size: int, seed: int) -> list[tuple[np.ndarray[Any, Any], int]]:
    """One full pack: (ids, untrained tokens at the start) of documents as conversations are, half of them trained."""
    random = np.random.default_rng(seed)
    documents, left = [], length
    while left > 1:
        size = int(min(left, max(16, random.lognormal(6.5, 1.3))))
        size = left if left - size < 16 else size
        documents.append((random.integers(0, vocab_size, size, dtype=np.int64), size // 2))
        left -= size
    return documents


def operations(config: LlamaConfig, documents: list[tuple[np.ndarray[Any, Any], int]]) -> float:
    """Forward and backward: 6 · (parameters of layers · tokens + head · trained tokens + layers · width · pairs)."""
    width, layers = config.hidden_size, config.num_hidden_layers
    key_value = width * config.num_key_value_heads // config.num_attention_heads
    per_layer = width * (2 * width + 2 * key_value) + 3 * width * config.intermediate_size
    lengths = np.array([len(ids) for ids, _ in documents], np.float64)
    trained = lengths.sum() - sum(untrained for _, untrained in documents)
    return float(
        6
        * (
            layers * per_layer * lengths.sum()
            + width * config.vocab_size * trained
            + layers * width * (lengths**2).sum()
        )
    )


def ours(model: LlamaForCausalLM, packs: list[Any], learning_rate: float, recompute: bool) -> Any:
    """A function that makes one of our steps on a pack, and the clock of its parts. Weights, gradients and states are
    in the model's type alone, as in TRL's trainer without ZeRO.
    """
    from sft.batches import Batch, Targets
    from sft.clock import Clock
    from sft.config import TrainConfig
    from sft.engine import optimizer_step, start_engine
    from sft.layers import forget_activations
    from sft.lean import keep_less
    from sft.model import PackedCausalLM
    from sft.world import join_world

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    world = join_world()
    settings = {"learning_rate": learning_rate, "packs_per_step": 1, "zero": {"stage": 1}}
    settings |= {"pure_bfloat16": model.dtype is torch.bfloat16, "activation_checkpointing": recompute}
    train = TrainConfig.model_validate(settings)
    keep_less(model)
    forget_activations(model, train)
    engine = start_engine(PackedCausalLM(model), train, model.dtype, world)

    def batch_of(documents: list[tuple[np.ndarray[Any, Any], int]]) -> Batch:
        lengths = [len(ids) for ids, _ in documents]
        borders = np.concatenate([[0], np.cumsum(lengths)])
        trained = np.concatenate([np.arange(len(ids)) >= max(untrained, 1) for ids, untrained in documents])
        ids = np.concatenate([ids for ids, _ in documents])
        places = np.flatnonzero(trained) - 1
        return Batch(
            input_ids=torch.from_numpy(ids[None]),
            positions=torch.from_numpy((np.arange(len(ids)) - np.repeat(borders[:-1], lengths))[None]),
            borders=torch.from_numpy(borders.astype(np.int32)),
            longest=max(lengths),
            tokens=len(ids),
            documents=np.arange(len(documents)),
            targets=Targets(
                torch.from_numpy(places),
                torch.from_numpy(ids[places + 1]),
                None,
                torch.zeros(len(places), dtype=torch.int64),
                1,
            ),
        )

    batches, clock = [batch_of(pack) for pack in packs], Clock()

    def step(number: int) -> None:
        batch = batches[number]
        optimizer_step(engine, [batch], float(len(batch.targets.labels)), learning_rate, world, clock)
        clock.step_is_done()

    return step, clock


def trl(model: LlamaForCausalLM, packs: list[Any], learning_rate: float, liger: bool, recompute: bool) -> list[float]:
    """The seconds of TRL's steps on the packs; documents are apart only with a flash attention, which it asks for."""
    import datasets
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found, unused-ignore]

    rows = []
    for pack in packs:
        labels = [np.where(np.arange(len(ids)) >= max(untrained, 1), ids, -100) for ids, untrained in pack]
        ids = np.concatenate([ids for ids, _ in pack]).tolist()
        rows.append(
            {"input_ids": ids, "labels": np.concatenate(labels).tolist(), "seq_lengths": [len(i) for i, _ in pack]}
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="</s>",
    )
    settings = SFTConfig(
        output_dir="unused-by-benchmark",
        packing=True,
        padding_free=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        per_device_train_batch_size=1,
        max_steps=len(packs),
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        bf16=model.dtype == torch.bfloat16,
        use_cpu=model.device.type == "cpu",
        use_liger_kernel=liger,
        gradient_checkpointing=recompute,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
    )
    ends: list[float] = []

    class Times(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_step_end(self, *arguments: Any, **facts: Any) -> None:
            wait(model.device)
            ends.append(time.perf_counter())

    data = datasets.Dataset.from_list(rows)
    SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer, callbacks=[Times()]).train()
    return [after - before for before, after in pairwise(ends)]


def wait(device: torch.device) -> None:
    """Until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def one_case(name: str, length: int, who: str, steps: int, recompute: bool) -> dict[str, Any]:
    """Train some steps and measure them.

    Args:
        recompute: with activation checkpointing.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": 1024, **SHAPES[name]}, tie_word_embeddings=True, max_position_embeddings=length
    )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    facts = {"device": gpu, "torch": torch.__version__}
    if who in PARTS:
        return PARTS[who](config, documents_of(length, config.vocab_size, 0), dtype, device) | facts
    with torch.device(device):
        model = LlamaForCausalLM._from_config(config, dtype=dtype)
    packs = [documents_of(length, config.vocab_size, seed) for seed in range(steps)]
    if who == "ours":
        (step, clock), seconds = ours(model, packs, 1e-4, recompute), []
        for number in range(steps):
            started = time.perf_counter()
            step(number)
            wait(device)
            seconds.append(time.perf_counter() - started)
        seconds, parts = seconds[1:], clock.read()[1]
    else:
        if is_flash_attn_2_available():
            model.set_attn_implementation("flash_attention_2")
        seconds, parts = trl(model, packs, 1e-4, liger=who == "trl + liger", recompute=recompute), None
    median = sorted(seconds[1:])[len(seconds[1:]) // 2]
    flops = float(np.median([operations(config, pack) for pack in packs]))
    peak = peak_of_name(gpu)
    return {
        "tokens_per_second": length / median,
        "step_seconds": median,
        "parts": parts,
        "mfu": flops / median / peak if peak else None,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        "attention": model.config._attn_implementation,
        "activation_checkpointing": recompute,
        **facts,
    }


def main() -> None:
    """All cases, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="*", default=["SmolLM2-135M", "1B", "SmolLM3-3B"])
    parser.add_argument("--lengths", nargs="*", type=int, default=[8192, 32768])
    parser.add_argument("--trl", action="store_true")
    parser.add_argument("--longest", action="store_true")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, length, who = options.case
        print(json.dumps(one_case(name, int(length), who, options.steps, options.activation_checkpointing)))
        return
    models, lengths = (["small"], [256]) if options.small else (options.models, options.lengths)
    trainers = ["ours", "trl", "trl + liger"] if options.trl else ["ours"]
    flags = ["--activation-checkpointing"] if options.activation_checkpointing else []
    results = []

    def measure(model: str, length: int, who: str, steps: int) -> bool:
        case = {"model": model, "length": length, "who": who, **apart(model, length, who, steps, flags)}
        results.append(case)
        print(json.dumps(case), flush=True)
        return "error" not in case

    for model in models:
        for length in lengths:
            for who in (*trainers, *PARTS):
                measure(model, length, who, options.steps)
        for who in trainers if options.longest else ():
            length = max(lengths)
            while measure(model, 2 * length, who, 3):
                length *= 2
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def apart(model: str, length: int, who: str, steps: int, flags: list[str]) -> dict[str, Any]:
    """A case in a process of its own: what it found, or its error."""
    command = [sys.executable, "-m", "tests.benchmarks.gpu_step", "--steps", str(steps), *flags]
    done = subprocess.run([*command, "--case", model, str(length), who], capture_output=True, text=True, check=False)
    if done.returncode:
        full = "out of memory" in done.stderr.lower()
        return {"error": "out of memory" if full else done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
