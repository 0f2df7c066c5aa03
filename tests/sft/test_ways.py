"""Every way to share out and keep a run trains what the plain one does: whole runs on two ranks, and resumed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from data_tools.store import TokenStore
from data_tools.tokenizer import load_tokenizer
from sft.export import export_model
from sft.model import load_model
from sft.record import read_metrics
from sft.run import TrainingRun
from sft.trained import load_trained_model
from sft.world import World
from tests.ranks import run_ranks
from tests.sft.models import tiny_llama
from tests.sft.runs import MODEL, plan_run

pytestmark = pytest.mark.slow

STEPS = 4
RATE = 1e-2


class Way(NamedTuple):
    """Settings of a run, and which other run has its losses."""

    train: dict[str, Any]
    like: str = ""
    bound: float = 0.0
    """Of the difference of losses, relative."""
    dtype: str = "float32"
    lora: bool = False


def zero(stage: int, **values: Any) -> dict[str, Any]:
    return {"zero": {"stage": stage, **values}}


MUON = {"optimizer": "muon", "max_grad_norm": None}
SHARED_ROWS = {"sequence_parallel": 2}
SUMS, ROUNDED, TURNED = 1e-6, 2e-3, 2e-4
"""What sums in another order differ by, and what weights or gradients in bfloat16 do. Muon's steps are made orthogonal
in bfloat16 where the processor has it: sums that differ in their last bit may be rounded to neighbours there."""
ON_CPU = {"offload_optimizer": "cpu"}
WAYS = {
    "zero-2": Way(zero(2)),
    "zero-1-optimizer-offloaded": Way(zero(1, **ON_CPU), "zero-2", SUMS),
    "zero-2-optimizer-offloaded": Way(zero(2, **ON_CPU), "zero-2", SUMS),
    "zero-3": Way(zero(3), "zero-2", SUMS),
    "zero-3-optimizer-offloaded": Way(zero(3, **ON_CPU), "zero-3", SUMS),
    "zero-3-parameters-offloaded": Way(zero(3, offload_parameters="cpu"), "zero-3"),
    "zero-3-both-offloaded": Way(zero(3, **ON_CPU, offload_parameters="cpu"), "zero-3-optimizer-offloaded"),
    "zero-3-copies-in-groups": Way(zero(3, hpz_partition_size=2), "zero-3"),
    "zero-3-one-reduction": Way(zero(3, coalesce=True), "zero-3", SUMS),
    "zero-2-deterministic": Way({"deterministic": True, **zero(2)}, "zero-2"),
    "muon-0": Way({**MUON, **zero(0)}),
    "muon-1": Way({**MUON, **zero(1)}, "muon-0", TURNED),
    "muon-2": Way({**MUON, **zero(2)}, "muon-0", TURNED),
    "muon-3": Way({**MUON, **zero(3)}, "muon-0", TURNED),
    "muon-3-parameters-offloaded": Way({**MUON, **zero(3, offload_parameters="cpu")}, "muon-3"),
    "bfloat16-2": Way(zero(2), "zero-2", 5 * ROUNDED, "bfloat16"),
    "bfloat16-2-optimizer-offloaded": Way(zero(2, **ON_CPU), "bfloat16-2", ROUNDED, "bfloat16"),
    "bfloat16-2-gradients": Way({"gradient_dtype": "bfloat16", **zero(2)}, "bfloat16-2", ROUNDED, "bfloat16"),
    "bfloat16-3-gradients": Way({"gradient_dtype": "bfloat16", **zero(3)}, "bfloat16-2", ROUNDED, "bfloat16"),
    "bfloat16-1-all": Way({"pure_bfloat16": True, **zero(1)}, "bfloat16-2", ROUNDED, "bfloat16"),
    "bfloat16-2-all": Way({"pure_bfloat16": True, **zero(2)}, "bfloat16-2", ROUNDED, "bfloat16"),
    "bfloat16-3-all": Way({"pure_bfloat16": True, **zero(3)}, "bfloat16-2", ROUNDED, "bfloat16"),
    "lora-2": Way(zero(2), lora=True),
    "lora-2-shared-rows": Way({**SHARED_ROWS, **zero(2)}, "lora-2", SUMS, lora=True),
    "lora-3-shared-rows": Way({**SHARED_ROWS, **zero(3)}, "lora-2", SUMS, lora=True),
    "lora-muon-0": Way({**MUON, **zero(0)}, lora=True),
    "lora-muon-2": Way({**MUON, **zero(2)}, "lora-muon-0", TURNED, lora=True),
    "lora-muon-3": Way({**MUON, **zero(3)}, "lora-muon-0", TURNED, lora=True),
    "lora-muon-2-shared-rows": Way({**MUON, **SHARED_ROWS, **zero(2)}, "lora-muon-0", TURNED, lora=True),
}


def train_all(world: World, folder: str) -> dict[str, list[int]]:
    """Train all runs in a folder, and each again from its second step; the exit codes."""
    from sft.train import train

    codes = {}
    for path in sorted(path.parent for path in Path(folder).glob("*/run.yaml")):
        run = TrainingRun.open(path)
        codes[path.name] = [train(run, False, world, lambda: False)]
        if world.is_main:
            (path / "first").mkdir()
            shutil.copy(path / "metrics.jsonl", path / "first")
            shutil.rmtree(run.checkpoints / f"step-{STEPS:08d}")
        world.barrier()
        codes[path.name].append(train(run, True, world, lambda: False))
    return codes


def losses(run: Path) -> list[float]:
    """Of every step, and of the evaluation at the end."""
    lines = read_metrics(run)
    return [line[name] for name in ("loss", "validation_loss") for line in lines if name in line]


def train_ways(ways: dict[str, Way], store: TokenStore, chat_file: Path, folder: Path) -> None:
    """A run of each, trained twice."""
    tiny_llama(tied=True).save_pretrained(folder / "base")
    for name, way in ways.items():
        model = {"path": str(folder / "base"), "lora": {"rank": 4}} if way.lora else {"config": MODEL}
        schedule = {"name": "constant_with_warmup", "warmup_steps": 0}
        train = {"packs_per_step": 6, "max_steps": STEPS, "learning_rate": RATE, "schedule": schedule, **way.train}
        answers = ["Hi"] if way.train["zero"]["stage"] == 3 else []
        sections: dict[str, Any] = {
            "model": {**model, "dtype": way.dtype},
            "train": train,
            "evaluate": {"on_start": False, "samples": answers, "max_new_tokens": 2},
            "checkpoint": {"every": 2, "keep_last": 3},
        }
        plan_run(folder / name, store, chat_file, 2, **sections)
    first, second = run_ranks(2, "tests.sft.test_ways:train_all", folder=str(folder))
    assert first == second == {name: [0, 0] for name in ways}


@pytest.fixture(scope="module")
def trained(store: TokenStore, chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run; all of a family are trained at the first question, by two processes of their own: dozens of
    engines in one process come into each other's way.
    """
    folders: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        family = name.split("-")[0]
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            ways = {other: way for other, way in WAYS.items() if other.split("-")[0] == family}
            train_ways(ways, store, chat_file, folders[family])
        return folders[family] / name

    return folder_of


@pytest.mark.parametrize("name", WAYS)
def test_the_losses_are_those_of_the_plain_way(trained: Callable[[str], Path], name: str) -> None:
    way, found = WAYS[name], losses(trained(name))
    assert len(found) == STEPS + 1 and found[STEPS - 1] < found[0]
    if way.like:
        expected = losses(trained(way.like))
        differences = [abs(one / other - 1) for one, other in zip(found, expected, strict=True)]
        assert max(differences) <= way.bound


@pytest.mark.parametrize("name", WAYS)
def test_a_resumed_run_has_the_same_losses_to_the_last_bit(trained: Callable[[str], Path], name: str) -> None:
    first, resumed = losses(trained(name) / "first"), losses(trained(name))
    assert [loss.hex() for loss in resumed] == [loss.hex() for loss in first]


def test_muon_turns_matrices_of_layers_and_adamw_moves_the_rest(trained: Callable[[str], Path]) -> None:
    """After one step from zero momentum: the larger singular values of a gradient are all about 1 in Muon's update
    (Newton and Schulz do not lift tiny ones so far), and entries of AdamW's are the rate, with either sign.
    """
    run = TrainingRun.open(trained("muon-2"))
    tokenizer = load_tokenizer(str(run.store.folder / "tokenizer"))
    before = load_model(run.model, tokenizer, run.store.vocab_size, 0, torch.float32, run.train.seed).state_dict()
    after = load_trained_model(run, run.checkpoints / "step-00000001", tokenizer, torch.float32).state_dict()
    moved = {name: (before[name] - after[name]) / RATE for name in before}
    matrices = {name for name in moved if "proj" in name}
    assert len(matrices) == 14
    for name in matrices:
        rows, columns = moved[name].shape
        scale = max(1.0, rows / columns) ** 0.5
        values = torch.linalg.svdvals(moved[name] / scale)
        assert values[len(values) // 3] > 0.6 and values.max() < 1.3, name
    for name in moved.keys() - matrices:
        assert moved[name].abs().max() <= 1.001 and moved[name].abs().max() > 0.99, name


@pytest.mark.parametrize("name", ["lora-3-shared-rows", "lora-muon-2", "lora-muon-3"])
def test_adapters_are_exported(trained: Callable[[str], Path], name: str) -> None:
    model = export_model(TrainingRun.open(trained(name)))  # compares logits with those of training
    assert (model / "model.safetensors").exists()


def test_parameters_may_wait_on_a_disk(store: TokenStore, chat_file: Path, tmp_path: Path) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("install libaio-dev: DeepSpeed reads and writes disks by it")
    (tmp_path / "disk").mkdir()
    on_disk = zero(3, offload_parameters="nvme", nvme_path=str(tmp_path / "disk"))
    # DeepSpeed keeps this many numbers in memory all the same: by default as many as this model has.
    on_disk["deepspeed"] = {"zero_optimization": {"offload_param": {"max_in_cpu": 0}}}
    train_ways({"plain": Way(zero(3)), "on-disk": Way(on_disk, "plain")}, store, chat_file, tmp_path)
    assert losses(tmp_path / "on-disk") == losses(tmp_path / "plain") == losses(tmp_path / "on-disk" / "first")
