"""Steps are the same documents on any number of ranks; every document comes once an epoch."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.balance import NO_PACK, share_out
from data_tools.config import DataConfig
from data_tools.errors import UserError
from data_tools.plan import PackPlan, PlanSettings, make_plan
from data_tools.store import TokenStore

SETTINGS = PlanSettings(max_length=256, too_long="drop", validation_fraction=0.1, packs_per_step=8, seed=3)


@pytest.fixture(scope="module")
def plan(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> PackPlan:
    return make_plan(store, SETTINGS, tmp_path_factory.mktemp("plan"))


def documents_of(plan: PackPlan, step: int, ranks: int, per_micro_batch: int) -> list[int]:
    return sorted(
        int(document)
        for rank in range(ranks)
        for packs in plan.micro_batches(step, rank, ranks, per_micro_batch)
        for pack in packs
        for document in plan.train.packs[int(pack)]
    )


def test_an_epoch_has_every_training_document_once(plan: PackPlan, store: TokenStore) -> None:
    seen = [d for step in range(plan.steps_per_epoch) for d in documents_of(plan, step, 2, 1)]
    held_out = plan.validation.packs.documents.tolist()
    assert len(held_out) > 0
    assert sorted(seen + held_out) == list(range(len(store)))


@pytest.mark.parametrize(("ranks", "per_micro_batch"), [(1, 1), (2, 2), (4, 1), (8, 1)])
def test_steps_do_not_depend_on_the_number_of_ranks(plan: PackPlan, ranks: int, per_micro_batch: int) -> None:
    for step in range(2 * plan.steps_per_epoch):
        assert documents_of(plan, step, ranks, per_micro_batch) == documents_of(plan, step, 1, 1)


def test_epochs_differ_in_order_only(plan: PackPlan) -> None:
    def epoch(number: int) -> list[int]:
        steps = range(number * plan.steps_per_epoch, (number + 1) * plan.steps_per_epoch)
        return [int(pack) for step in steps for pack in plan.packs_of_step(step) if pack != NO_PACK]

    assert epoch(0) != epoch(1)
    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(len(plan.train)))


def test_the_last_step_of_an_epoch_is_filled_up(plan: PackPlan) -> None:
    assert len(plan.train) % SETTINGS.packs_per_step, "choose settings with an incomplete last step"
    last = plan.packs_of_step(plan.steps_per_epoch - 1)
    assert (last == NO_PACK).sum() == SETTINGS.packs_per_step - len(plan.train) % SETTINGS.packs_per_step
    assert plan.size_of_step(plan.steps_per_epoch - 1).packs == len(plan.train) % SETTINGS.packs_per_step


def test_size_of_a_step_counts_its_documents(plan: PackPlan, store: TokenStore) -> None:
    size = plan.size_of_step(0)
    documents = documents_of(plan, 0, 1, 1)
    assert size.tokens == store.index["length"][documents].sum()
    assert size.trained_tokens == store.index["trained"][documents].sum()


def test_the_same_settings_give_the_same_bytes(plan: PackPlan, store: TokenStore, tmp_path: Path) -> None:
    again = make_plan(store, SETTINGS, tmp_path)
    for name in ("plan.json", "train.arrow", "validation.arrow"):
        assert (again.folder / name).read_bytes() == (plan.folder / name).read_bytes()


def test_equal_conversations_never_fall_on_both_sides(store: TokenStore, plan: PackPlan) -> None:
    digest = store.index["digest"]
    train, validation = plan.train.packs.documents, plan.validation.packs.documents
    assert not set(digest[train].tolist()) & set(digest[validation].tolist())


def test_a_limit_shorter_than_every_document_is_an_error(store: TokenStore, tmp_path: Path) -> None:
    config = DataConfig.model_validate({"sources": [{"path": "x"}], "tokenizer": "x", "max_length": 8})
    with pytest.raises(UserError, match=r"max_length=8 is shorter than every document .* raise it"):
        make_plan(store, PlanSettings.of(config, 8, 0), tmp_path)


def test_too_long_documents_can_be_forbidden(store: TokenStore, tmp_path: Path) -> None:
    longest = int(store.index["length"].max())
    settings = PlanSettings(longest - 1, "error", 0.0, 8, 0)
    with pytest.raises(UserError, match=f"the longest {longest}"):
        make_plan(store, settings, tmp_path)


def test_costly_packs_run_at_the_same_time() -> None:
    costs = np.arange(16)[::-1]
    dealt = share_out(costs, ranks=2, packs_per_micro_batch=2)
    assert dealt.shape == (4, 2, 2)
    assert dealt[0].sum(axis=0).tolist() == [15 + 12, 14 + 13]


def test_a_missing_plan_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shardtune plan"):
        PackPlan(tmp_path)
