"""With ZeRO-3 one rank reads the weights; the others take memory for their parts only, and have the same model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from data_tools.store import TokenStore
from sft.config_model import LoraConfig, ModelConfig
from sft.hollow import hollow_model
from sft.lora import add_lora
from sft.model import load_model, model_hash
from sft.run import TrainingRun
from sft.world import World
from tests.ranks import run_ranks
from tests.sft.models import tiny_llama
from tests.sft.runs import MODEL, plan_run
from tests.sft.test_stop import before_call

GB = 1e9


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("added", [0, 20])
def test_a_hollow_model_has_all_but_its_weights(tied: bool, added: int, tmp_path: Path) -> None:
    tiny_llama(tied).save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path))
    tokenizer: Any = None  # only random weights ask for it
    whole = load_model(config, tokenizer, 400 + added, added, torch.float32, 0)
    hollow = hollow_model(config, tokenizer, 400 + added, added, torch.float32)
    for model in (whole, hollow):
        add_lora(model, LoraConfig(embeddings=True), added)
    assert model_hash(hollow) == model_hash(whole)
    assert hollow.training and whole.training
    ends = (hollow.get_input_embeddings().weight, hollow.get_output_embeddings().weight)
    assert (ends[0] is ends[1]) == tied
    base = [weight for name, weight in hollow.named_parameters() if "lora" not in name]
    assert all(weight.is_meta for weight in base)
    buffers = dict(whole.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in hollow.named_buffers())
    assert not torch.nn.Linear(2, 2).weight.is_meta, "other models are as ever"


def peak_memory() -> int:
    """Bytes that this process had at most."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def memory_until_tried(world: World, folder: str) -> float:
    """GB that a rank takes until its model is split and the engine started, before the first forward pass."""
    import peft  # noqa: F401

    import sft.start

    before, peaks = peak_memory(), []
    with before_call("sft.start.check_documents_are_apart", 1, lambda: peaks.append(peak_memory())):
        sft.start.start_session(TrainingRun.open(Path(folder)), world, lambda: False)
    return (peaks[0] - before) / GB


@pytest.mark.slow
def test_only_one_rank_has_room_for_the_whole_model(
    store: TokenStore, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")  # what is freed is seen to be free
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=10,
        num_attention_heads=8,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config)
    size = sum(weight.nbytes for weight in model.parameters()) / GB
    model.save_pretrained(tmp_path / "base")
    del model
    sections: dict[str, Any] = {
        "model": {"path": str(tmp_path / "base"), "lora": {"rank": 4}, "dtype": "float32"},
        "train": {"packs_per_step": 6, "max_steps": 1, "zero": {"stage": 3}},
    }
    run = plan_run(tmp_path / "run", store, chat_file, 2, **sections)
    first, second = run_ranks(2, "tests.sft.test_hollow:memory_until_tried", folder=str(run))
    print(f"weights {size:.2f} GB; main rank {first:.2f} GB, other rank {second:.2f} GB")
    assert size > 0.7 and second < 0.7 * size


def split_and_gathered(world: World, folders: list[str]) -> list[bool]:
    """Whether each run's model, split and put together again, has the very bits of its weights."""
    import deepspeed

    from sft.start import start_session

    same = []
    for folder in folders:
        run = TrainingRun.open(Path(folder))
        session = start_session(run, world, lambda: False)
        vocab_size, added = run.store.vocab_size, run.store.added_tokens
        whole = load_model(run.model, session.tokenizer, vocab_size, added, torch.bfloat16, run.train.seed)
        split = session.engine.module.model
        with deepspeed.zero.GatheredParameters(list(split.parameters())):
            found = dict(split.named_parameters())
            same.append(all(torch.equal(found[name], weight) for name, weight in whole.named_parameters()))
        session.leave(session.fresh())
    return same


def test_what_is_split_is_the_model(store: TokenStore, chat_file: Path, tmp_path: Path) -> None:
    tiny_llama(tied=False).save_pretrained(tmp_path / "base")
    train = {"packs_per_step": 6, "max_steps": 1, "zero": {"stage": 3}}
    watch: dict[str, Any] = {"evaluate": {"on_start": False, "samples": []}, "train": train}
    models: dict[str, dict[str, Any]] = {"read": {"path": str(tmp_path / "base")}, "random": {"config": MODEL}}
    folders = [
        str(plan_run(tmp_path / name, store, chat_file, 2, model={**model, "dtype": "bfloat16"}, **watch))
        for name, model in models.items()
    ]
    assert run_ranks(2, "tests.sft.test_hollow:split_and_gathered", folders=folders) == [[True] * 2] * 2
