"""Early stopping and the best checkpoint: functions of the validation losses, and what a run does with them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_tools.errors import UserError
from data_tools.store import TokenStore
from sft.best import best_validation, why_no_more
from sft.config_watch import EarlyStoppingConfig, EvaluateConfig
from sft.record import read_metrics
from sft.world import World
from tests.ranks import run_ranks
from tests.sft.runs import plan_run


def test_the_lowest_after_a_step() -> None:
    assert best_validation(()) is None
    assert best_validation(((0, 1.0),)) is None, "the untrained model has no checkpoint"
    assert best_validation(((0, 1.0), (2, 3.0), (4, 2.0), (6, 2.0), (8, math.nan))) == (4, 2.0)


def ends_at(losses: list[float], patience: int, min_delta: float = 0.0) -> int | None:
    """The number of evaluations after which a run ends."""
    settings = EarlyStoppingConfig(patience=patience, min_delta=min_delta)
    made = list(enumerate(losses))
    return next((count for count in range(len(made) + 1) if why_no_more(made[:count], settings)), None)


def test_patience_is_counted_from_the_last_new_best() -> None:
    assert ends_at([3.0, 2.0, 2.5, 2.0, 1.9, 2.0, 2.0], patience=2) == 4
    assert ends_at([3.0, 2.0, 2.5, 1.9, 2.0, 1.95], patience=2) == 6
    assert ends_at([3.0, 2.95, 2.9, 2.5], patience=2, min_delta=0.1) == 3
    assert ends_at([3.0, 2.8, 2.6, 2.4], patience=1, min_delta=0.1) is None
    assert ends_at([math.nan, math.nan], patience=2) == 2
    assert why_no_more([(0, 3.0), (2, 2.0), (4, 2.5)], EarlyStoppingConfig(patience=1)) == (
        "the validation loss had no new best in 1 evaluations since 2.0000 after step 2"
    )
    assert not why_no_more([(0, 1.0), (1, 2.0)], None)


@given(st.lists(st.floats(0, 10), max_size=20), st.integers(1, 5))
def test_a_run_ends_where_the_last_losses_are_no_better(losses: list[float], patience: int) -> None:
    count = ends_at(losses, patience)
    ends = [
        n for n in range(patience + 1, len(losses) + 1) if min(losses[n - patience : n]) >= min(losses[: n - patience])
    ]
    assert count == (ends[0] if ends else None)


def test_it_needs_evaluations_on_the_way() -> None:
    with pytest.raises(ValueError, match=r"set evaluate\.every"):
        EvaluateConfig(early_stopping=EarlyStoppingConfig())


def until_it_falls_no_more(world: World, folder: str, without: str) -> dict[str, Any]:
    """Train until the run ends; again, which does nothing; and again from an older checkpoint."""
    import shutil

    from sft.run import TrainingRun
    from sft.train import train

    run = TrainingRun.open(Path(folder))
    report: dict[str, Any] = {"codes": [], "steps": [], "checkpoints": []}
    for resuming in (False, True, True):
        report["codes"].append(train(run, resuming, world, lambda: False))
        report["steps"].append([line["step"] for line in read_metrics(run.folder) if "loss" in line])
        report["checkpoints"].append(sorted(path.name for path in run.checkpoints.iterdir()))
        if len(report["codes"]) == 2:
            shutil.rmtree(max(run.checkpoints.iterdir()))
    try:
        train(TrainingRun.open(Path(without)), False, world, lambda: False)
    except UserError as error:
        report["error"] = str(error)
    return report


def test_a_run_ends_and_keeps_its_best(store: TokenStore, chat_file: Path, tmp_path: Path) -> None:
    """A rate so high that the loss soon rises again; no other setting would save at the best step."""
    from sft.export import compare_with_trained, export_model
    from sft.progress import read_progress
    from sft.run import TrainingRun

    sections: dict[str, Any] = {
        "train": {"packs_per_step": 6, "max_steps": 100, "learning_rate": 0.2},
        "evaluate": {"every": 2, "samples": [], "early_stopping": {"patience": 2}},
        "checkpoint": {"every": 1000, "keep_last": 1, "keep_best": True},
    }
    folder = plan_run(tmp_path / "run", store, chat_file, 1, **sections)
    none_held_out = plan_run(tmp_path / "none", store, chat_file, 1, **sections, validation=0.0)
    (report,) = run_ranks(
        1, "tests.sft.test_best:until_it_falls_no_more", folder=str(folder), without=str(none_held_out)
    )
    losses = {line["step"]: line["validation_loss"] for line in read_metrics(folder) if "validation_loss" in line}
    best = min(losses, key=lambda step: (losses[step], step))
    last = best + 4
    assert best > 0 and last == max(losses) < 100
    assert report["codes"] == [0, 0, 0]
    assert report["steps"] == [list(range(1, last + 1))] * 3
    assert report["checkpoints"] == [[f"step-{best:08d}", f"step-{last:08d}"]] * 3
    assert "evaluate.early_stopping needs validation documents" in report["error"]

    run = TrainingRun.open(folder)
    model = export_model(run, best=True)
    of_best, of_last = (
        torch.load(run.checkpoints / f"step-{step:08d}" / "probe.pt", weights_only=True) for step in (best, last)
    )
    compare_with_trained(model, of_best, run.model)
    with pytest.raises(UserError, match="logits differ"):
        compare_with_trained(model, of_last, run.model)
    assert read_progress(run.checkpoints / f"step-{best:08d}").validations[-1] == (best, losses[best])
    probe = run.checkpoints / f"step-{best:08d}" / "probe.pt"
    probe.write_bytes(probe.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"the best checkpoint, is damaged \(probe.pt was changed\); leave out --best"):
        export_model(run, best=True)
