"""The resume matrix, and checkpoints on other ranks and other ZeRO stages, in three starts of ranks."""

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.world import World
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

BOUND = 1e-5
"""Of losses, relative, in float32."""
LATER = {"float32 adamw": BOUND, "float32 muon": 1e-4, "bfloat16 adamw": 2e-3}
"""Of the steps after one on other ranks, which sum gradients in another order: Muon makes its updates in bfloat16 where
a machine has it, and rounds a difference of 1e-7 to one of 1e-5."""
PLAN, MODEL = "plan", "model"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def jobs(world: World, store: str, plan: str, folder: str, tasks: list[dict[str, Any]]) -> list[list[str]]:
    """Train some engines one after the other; the losses of each, as hex floats.

    A task: `resume` and `save` (names of checkpoint folders, or None), `stage`, `dtype`, `optimizer`, `dropout`,
    `steps` (first and last + 1) and `save_at`.
    """
    tokens, packs = TokenStore(Path(store)), PackPlan(Path(plan))
    return [job(world, tokens, packs, Path(folder), task) for task in tasks]


def job(world: World, tokens: TokenStore, packs: PackPlan, folder: Path, task: dict[str, Any]) -> list[str]:
    from sft.batches import make_batch
    from sft.checkpoint import resume
    from sft.clock import Clock
    from sft.engine import optimizer_step

    train = settings(task)
    engine = start(task, world)
    if task["resume"]:
        progress = resume(engine, folder / task["resume"], PLAN, MODEL, train, world)
        assert progress is not None
        assert progress.step == task["steps"][0]
    losses = []
    for step in range(*task["steps"]):
        if task["save"] and step == task["save_at"]:
            save(engine, folder / task["save"], step, train, world)
        mine = packs.micro_batches(step, world.rank, world.size, 1)
        batches = [make_batch(tokens, packs.train, micro_batch) for micro_batch in mine]
        size = packs.size_of_step(step)
        (loss,) = world.sum(optimizer_step(engine, batches, size.weight, 1e-2, world, Clock()).loss_sum)
        losses.append((loss / size.weight).hex())
    if task["save"] and task["save_at"] == task["steps"][1]:
        save(engine, folder / task["save"], task["save_at"], train, world)
    return losses


def settings(task: dict[str, Any]) -> Any:
    from sft.config import TrainConfig

    return TrainConfig.model_validate(
        {
            "packs_per_step": 6,
            "optimizer": task["optimizer"],
            "max_grad_norm": None if task["optimizer"] == "muon" else 1.0,
            "zero": {"stage": task["stage"]},
        }
    )


def start(task: dict[str, Any], world: World) -> Any:
    from sft.engine import start_engine
    from sft.model import PackedCausalLM
    from tests.sft.models import tiny_llama

    dtype = DTYPES[task["dtype"]]
    model = tiny_llama(tied=True).to(dtype)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1 if task["dropout"] else 0.0
    torch.manual_seed(world.rank)
    return start_engine(PackedCausalLM(model), settings(task), dtype, world)


def save(engine: Any, folder: Path, step: int, train: Any, world: World) -> None:
    from sft.checkpoint import commit_checkpoint
    from sft.progress import Progress

    progress = Progress(step, 0, 0, PLAN, MODEL, train.zero.stage, world.size, False, (), {})
    commit_checkpoint(engine, folder, progress, {}, world)


def task(stage: Any, steps: tuple[int, int], **values: Any) -> dict[str, Any]:
    defaults = {"resume": None, "save": None, "save_at": 0, "dtype": "float32", "optimizer": "adamw", "dropout": False}
    return {"stage": stage, "steps": steps, **defaults, **values}


def on(ranks: int, folders: dict[str, str], folder: Path, tasks: list[dict[str, Any]]) -> list[list[float]]:
    reports = run_ranks(ranks, "tests.sft.test_elastic:jobs", folder=str(folder), tasks=tasks, **folders)
    assert all(report == reports[0] for report in reports)
    return [[float.fromhex(loss) for loss in losses] for losses in reports[0]]


ADAMW: dict[str, Any] = {"dtype": "float32", "optimizer": "adamw"}
MUON: dict[str, Any] = {"dtype": "float32", "optimizer": "muon"}
ROUNDED: dict[str, Any] = {"dtype": "bfloat16", "optimizer": "adamw"}
MATRIX = [{**kind, "stage": stage, "dropout": True} for kind in (ADAMW, MUON, ROUNDED) for stage in (0, 1, 2, 3)]
WAYS = [
    *((ADAMW, way) for way in ((0, 1, 2), (1, 1, 1), (1, 0, 3), (2, 2, 2), (2, 3, 0), (3, 2, 1), (3, 3, 3))),
    *((MUON, way) for way in ((0, 1, 2), (1, 2, 3), (2, 3, 1), (3, 0, 0))),
    *((ROUNDED, way) for way in ((0, 1, 2), (1, 2, 3), (2, 3, 1), (3, 0, 0))),
]
"""ZeRO stages on two ranks, then on one, then on two again."""


class Found(NamedTuple):
    """Losses of all engines that this module starts."""

    matrix: list[tuple[list[float], list[float]]]
    """Of each of `MATRIX`: four steps, and the last two again after a resume."""
    ways: list[tuple[list[float], list[float]]]
    """Of each of `WAYS`: the last four steps on two ranks that go through, and on two, one and two ranks."""
    folder: Path
    """Has `two2`, a checkpoint of two ranks, and `one3`, what one rank made of it without a step."""


@pytest.fixture(scope="module")
def found(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Two ranks, one rank and two ranks are started once each, for all tests."""
    folder = tmp_path_factory.mktemp("elastic")
    matrix = [
        values
        for number, kind in enumerate(MATRIX)
        for values in (
            task(steps=(0, 4), save=f"m{number}", save_at=2, **kind),
            task(steps=(2, 4), resume=f"m{number}", **kind),
        )
    ]
    names = [f"w{number}" for number in range(len(WAYS))]
    together = list(zip(WAYS, names, strict=True))
    through = [task(way[0], (0, 6), save=f"{name}-2", save_at=2, **kind) for (kind, way), name in together]
    two = on(2, folders, folder, [*matrix, *through, task(2, (0, 2), save="two2", save_at=2)])
    first = [
        task(way[1], (2, 4), resume=f"{name}-2", save=f"{name}-1", save_at=4, **kind) for (kind, way), name in together
    ]
    one = on(1, folders, folder, [*first, task(3, (2, 2), resume="two2", save="one3", save_at=2)])
    again = on(2, folders, folder, [task(way[2], (4, 6), resume=f"{name}-1", **kind) for (kind, way), name in together])
    whole, split = two[: len(matrix)], two[len(matrix) :]
    return Found(
        matrix=list(zip(whole[0::2], whole[1::2], strict=True)),
        ways=[(split[number][2:], one[number] + again[number]) for number in range(len(WAYS))],
        folder=folder,
    )


@pytest.mark.parametrize("number", range(len(MATRIX)))
def test_a_resumed_engine_has_the_same_losses_to_the_last_bit(found: Found, number: int) -> None:
    """Every ZeRO stage, type and optimizer, dropout on, so that every rank's random state matters."""
    whole, resumed = found.matrix[number]
    assert len(set(whole)) == 4
    assert [loss.hex() for loss in resumed] == [loss.hex() for loss in whole[2:]]


@pytest.mark.parametrize("number", range(len(WAYS)))
def test_two_ranks_one_and_two_again(found: Found, number: int) -> None:
    """What is loaded is the same, and so is the first loss; later ones differ by what other ranks round elsewhere."""
    through, elastic = found.ways[number]
    differences = [abs(one / other - 1) for one, other in zip(elastic, through, strict=True)]
    assert differences[0] < BOUND
    kind = WAYS[number][0]
    assert max(differences) < LATER[f"{kind['dtype']} {kind['optimizer']}"]


def test_parts_are_put_together_as_in_deepspeeds_universal_checkpoint(found: Found) -> None:
    """A checkpoint, and one that an engine of another split gives without a step in between: the same numbers."""
    before = universal(found.folder / "two2" / "step-00000002", found.folder / "two2-u")
    after = universal(found.folder / "one3" / "step-00000002", found.folder / "one3-u")
    assert {key for _, key in before} == {"fp32", "exp_avg", "exp_avg_sq"}
    assert before.keys() - after.keys() == {("model.lm_head.weight", "fp32")}, "tied, and the same numbers once more"
    assert all(torch.equal(before[key].flatten(), value.flatten()) for key, value in after.items())


def universal(checkpoint: Path, folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    """Whole tensors by parameter and state, as DeepSpeed converts them."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    arguments = ["--input_folder", str(checkpoint / "state"), "--output_folder", str(folder)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    values = {}
    for path in (folder / "zero").glob("*/*.pt"):
        if path.stem != "step":
            value = torch.load(path, weights_only=False)
            values[path.parent.name, path.stem] = value["param"] if isinstance(value, dict) else value
    return values
