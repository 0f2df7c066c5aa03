"""A loss or gradient that is no number ends the run with its step, and a loss with its documents."""

import math
import re
from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from data_tools.errors import UserError
from data_tools.plan import PlanSettings, SourceShare, StepSize, make_plan
from sft.config import TrainConfig
from sft.config_model import ModelConfig
from sft.config_watch import CheckpointConfig, EvaluateConfig
from sft.metrics import BadLoss, Summary
from sft.nan import check_finite
from sft.run import TrainingRun
from tests.stores import random_documents, write_store


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    folder = tmp_path_factory.mktemp("run")
    documents = random_documents([5 + 13 * number % 90 for number in range(120)], seed=3)
    store = write_store(folder / "tokens", documents, [number % 2 for number in range(120)], [0, 1])
    settings = PlanSettings(128, "drop", 0.0, 4, 0, sources=[SourceShare()] * 2)
    plan = make_plan(store, settings, folder / "plan")
    model = ModelConfig(config={"architecture": "llama"})
    train = TrainConfig(packs_per_step=4)
    return TrainingRun(folder, store, plan, date(2025, 1, 1), model, train, EvaluateConfig(), CheckpointConfig(), ())


def summary(norms: list[float], bad: BadLoss | None) -> Summary:
    sizes = [StepSize(4, 400, 100, 100.0, 0)] * len(norms)
    return Summary(sizes, 128, np.zeros((2, 5)), norms, bad, 1.0, {}, 0.0, 0.0)


def test_the_documents_of_the_micro_batch_are_named(run: TrainingRun) -> None:
    """Step 3 of the interval that ends with step 4, the second micro-batch of the second of two ranks."""
    bad = BadLoss(1, 1, 1, is_nan=True, everywhere=False)
    with pytest.raises(UserError) as error:
        check_finite(summary([1.0, math.inf, 1.0], bad), 4, run, ranks=2)
    message = str(error.value)
    assert message.startswith("step 3: the loss of micro-batch 1 of rank 1 is nan; its documents are of rows ")
    (pack,) = run.plan.micro_batches(2, 1, 2, 1)[1]
    expected: dict[str, set[int]] = {}
    for number in run.plan.train.packs[int(pack)].tolist():
        source, row = run.store.place(number)
        expected.setdefault(run.store.manifest["sources"][source]["name"], set()).add(row)
    assert len(expected) == 2
    named = re.search(r"of rows (.*) \(from 0\)", message)
    assert named is not None
    found = {part.split(": ")[0]: set(map(int, part.split(": ")[1].split(", "))) for part in named[1].split("; ")}
    assert found == expected


def test_ranks_that_share_a_row_have_the_same_documents(run: TrainingRun) -> None:
    """Ranks 2 and 3 of four are the second pair: what rank 1 of two would have."""
    shared = replace(run, train=run.train.model_copy(update={"sequence_parallel": 2}))

    def message(of: TrainingRun, rank: int, ranks: int) -> str:
        with pytest.raises(UserError) as error:
            check_finite(summary([1.0, math.inf], BadLoss(1, rank, 1, is_nan=True, everywhere=False)), 4, of, ranks)
        return str(error.value)

    alone = message(run, 1, 2)
    for rank in (2, 3):
        assert message(shared, rank, 4) == alone.replace("of rank 1", f"of rank {rank}")


def test_where_every_loss_is_bad_no_document_is_blamed(run: TrainingRun) -> None:
    bad = BadLoss(0, 0, 0, is_nan=False, everywhere=True)
    with pytest.raises(UserError, match=r"^step 4: the loss of all packs is inf: .*; lower train\.learning_rate$"):
        check_finite(summary([1.0], bad), 4, run, ranks=2)


def test_the_first_step_without_a_finite_gradient_is_named(run: TrainingRun) -> None:
    late = BadLoss(2, 0, 0, is_nan=True, everywhere=False)
    with pytest.raises(UserError, match=r"^step 8: the gradient is inf; lower train\.learning_rate"):
        check_finite(summary([1.0, math.inf, math.nan, 1.0], late), 10, run, ranks=1)
    check_finite(summary([1.0, 2.0], None), 10, run, ranks=1)
