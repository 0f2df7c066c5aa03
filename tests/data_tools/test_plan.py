"""Steps are the same documents on any number of ranks; every document comes once an epoch."""

import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_tools import plan as plan_module
from data_tools.balance import NO_PACK
from data_tools.config import DataConfig
from data_tools.errors import UserError
from data_tools.plan import PackPlan, PlanSettings, SourceShare, make_plan
from data_tools.store import StoredDocument, TokenStore
from tests.stores import random_documents, write_store

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
    assert size.weight == size.trained_tokens, "without weights every label counts 1"
    assert size.pairs == (store.index["length"][documents].astype(np.int64) ** 2).sum()


def test_without_a_cost_of_attention_no_pairs_are_known(store: TokenStore, tmp_path: Path) -> None:
    assert make_plan(store, replace(SETTINGS, attention_cost=0.0), tmp_path).size_of_step(0).pairs == 0


def test_weights_of_labels_add_up(weighted_store: TokenStore, tmp_path: Path) -> None:
    plan = make_plan(weighted_store, SETTINGS, tmp_path)
    size = plan.size_of_step(0)
    assert size.weight == weighted_store.index["weight"][documents_of(plan, 0, 1, 1)].sum() != size.trained_tokens


def test_the_same_settings_give_the_same_bytes(plan: PackPlan, store: TokenStore, tmp_path: Path) -> None:
    again = make_plan(store, SETTINGS, tmp_path)
    for name in ("plan.json", "train.arrow", "validation.arrow"):
        assert (again.folder / name).read_bytes() == (plan.folder / name).read_bytes()


def test_a_plan_that_is_there_survives_a_kill_while_it_is_made_again(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_plan(store, SETTINGS, tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan_module, "_pack_batch", killed)
    assert make_plan(store, SETTINGS, tmp_path).hash == made.hash
    with pytest.raises(KeyboardInterrupt):
        make_plan(store, replace(SETTINGS, seed=4), tmp_path)


def test_a_kill_between_packs_and_plan_leaves_no_plan(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old `plan.json` beside the packs of a new one would be of other documents."""
    make_plan(store, SETTINGS, tmp_path)
    before = (tmp_path / "train.arrow").read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan_module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        make_plan(store, replace(SETTINGS, seed=4), tmp_path)
    assert (tmp_path / "train.arrow").read_bytes() != before
    with pytest.raises(UserError, match="there is no pack plan"):
        PackPlan(tmp_path)


def test_a_damaged_plan_is_made_again(store: TokenStore, tmp_path: Path) -> None:
    made = make_plan(store, SETTINGS, tmp_path)
    whole = (tmp_path / "train.arrow").read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "train.arrow").write_bytes(damaged)
    assert make_plan(store, SETTINGS, tmp_path).hash == made.hash
    assert (tmp_path / "train.arrow").read_bytes() == whole


@pytest.mark.parametrize("harm", ["", "{}", "[]", "null", "digit", "half"])
def test_a_damaged_record_of_a_plan_is_one_line_and_made_again(harm: str, store: TokenStore, tmp_path: Path) -> None:
    make_plan(store, SETTINGS, tmp_path)
    whole = (tmp_path / "plan.json").read_bytes()
    damaged = {"digit": whole.replace(b'"seed": 3', b'"seed": 7'), "half": whole[: len(whole) // 2]}
    (tmp_path / "plan.json").write_bytes(damaged.get(harm, harm.encode()))
    with pytest.raises(UserError, match=r"plan\.json is damaged; delete it and run `shardtune plan` with the same"):
        PackPlan(tmp_path)
    make_plan(store, SETTINGS, tmp_path)
    assert (tmp_path / "plan.json").read_bytes() == whole


@pytest.mark.parametrize("name", ["train.arrow", "validation.arrow"])
@pytest.mark.parametrize("harm", ["gone", "empty", "half", "other"])
def test_damaged_packs_are_one_line(name: str, harm: str, store: TokenStore, tmp_path: Path) -> None:
    make_plan(store, SETTINGS, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes({"half": whole[: len(whole) // 2]}.get(harm, b""))
    if harm == "gone":
        path.unlink()
    if harm == "other":
        shutil.copy(store.folder / "index.arrow", path)
    with pytest.raises(UserError, match=rf"{name} is damaged; run `shardtune plan` with the same") as error:
        PackPlan(tmp_path)
    assert "\n" not in str(error.value)
    make_plan(store, SETTINGS, tmp_path)
    assert path.read_bytes() == whole


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


def test_a_missing_plan_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shardtune plan"):
        PackPlan(tmp_path)


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """200 documents of 2 to 120 tokens, the first half of one source, the second of another."""
    documents = random_documents([2 + number * 7 % 119 for number in range(200)], seed=0)
    return write_store(tmp_path_factory.mktemp("two") / "tokens", documents, [0] * 100 + [1] * 100, [0, 1])


MIXED = replace(SETTINGS, max_length=128, validation_fraction=0.0, sources=[SourceShare(2.5), SourceShare(0.2)])


def test_repeats_come_as_often_as_the_weight_says(two_sources: TokenStore, tmp_path: Path) -> None:
    plan = make_plan(two_sources, MIXED, tmp_path)
    times = Counter(plan.train.packs.documents.tolist())
    assert Counter(times[number] for number in range(100)) == {2: 50, 3: 50}
    assert Counter(times[number] for number in range(100, 200)) == {0: 80, 1: 20}
    taken = [source["taken_documents"] for source in plan.facts["sources"]]
    assert taken == [250, 20]
    assert sum(source["taken_tokens"] for source in plan.facts["sources"]) == plan.train.tokens.sum()
    assert plan.facts["sources"][1]["not_taken"] == 80
    assert PackPlan(tmp_path).settings == MIXED


def test_a_plan_is_the_same_on_every_machine_and_in_every_version(two_sources: TokenStore, tmp_path: Path) -> None:
    """A checkpoint only goes on with the plan of this hash. Who changes it on purpose raises `FORMAT_VERSION`, too."""
    settings = replace(MIXED, validation_fraction=0.1, max_length=50, too_long="split")
    made = make_plan(two_sources, settings, tmp_path)
    assert made.hash == "1b52a27edf3ab5e916781ab80f1520bb00c51c37c6c577694c14990d4c4b41ff"
    assert made.train.packs.documents[:6].tolist() == [14, 83, 24, 65, 78, 9]


def test_pieces_of_a_document_are_mixed(tmp_path: Path) -> None:
    """Forty of equal length: their order is that of their contents, not that in the document."""
    document = StoredDocument(np.arange(2000, dtype=np.uint16), np.array([1, 1999], np.int32), None)
    store = write_store(tmp_path / "tokens", [document], [0], [0])
    plan = make_plan(store, PlanSettings(50, "split", 0.0, 8, 3), tmp_path / "plan")
    assert plan.train.cuts is not None
    starts = plan.train.cuts[0].tolist()
    assert sorted(starts) == list(range(0, 2000, 50))
    assert sum(later == earlier + 50 for earlier, later in pairwise(starts)) < 5


def test_whole_documents_are_a_few_bytes_on_disk(two_sources: TokenStore, tmp_path: Path) -> None:
    whole = make_plan(two_sources, replace(MIXED, sources=[]), tmp_path / "whole")
    assert whole.train.cuts is None
    split = make_plan(two_sources, replace(MIXED, sources=[], max_length=50, too_long="split"), tmp_path / "split")
    assert split.train.cuts is not None
    assert len(split.train.cuts[0]) == len(split.train.packs.documents)


@pytest.mark.parametrize("too_long", ["truncate", "split"])
def test_cut_documents_fill_packs_no_further_than_they_go(
    too_long: str, two_sources: TokenStore, tmp_path: Path
) -> None:
    plan = make_plan(two_sources, replace(MIXED, sources=[], max_length=50, too_long=too_long), tmp_path)
    assert plan.train.tokens.max() == 50
    assert plan.train.cuts is not None
    starts, lengths = plan.train.cuts
    assert ((starts > 0).any()) == (too_long == "split")
    assert (starts + lengths <= two_sources.index["length"][plan.train.packs.documents]).all()
    assert plan.facts["too_long"] == (two_sources.index["length"] > 50).sum()


def test_documents_alone_or_in_one_stream(two_sources: TokenStore, tmp_path: Path) -> None:
    alone = make_plan(two_sources, replace(MIXED, sources=[], packing="none"), tmp_path / "none")
    assert len(alone.train) == 200
    assert np.diff(alone.train.packs.offsets).tolist() == [1] * 200
    assert alone.fill == alone.train.tokens.sum() / (200 * 128) < 0.6
    stream = make_plan(two_sources, replace(MIXED, sources=[], packing="wrapped"), tmp_path / "wrapped")
    assert stream.fill > 0.99 > alone.fill
    assert stream.train.tokens.sum() > 0.9 * two_sources.index["length"].sum()


def test_sources_must_be_those_of_the_store_and_give_something(two_sources: TokenStore, tmp_path: Path) -> None:
    for sources, message in [
        ([SourceShare()], r"data.sources has 1 items, the token store .* was made of 2"),
        ([SourceShare()] * 3, "data.sources has 3 items"),
        (
            [SourceShare(), SourceShare(0.001)],
            r"data.sources.1 \(source-1\) gives nothing .*100 documents, 100 not_taken",
        ),
        ([SourceShare(0.001)] * 2, "no document is left to train on"),
    ]:
        with pytest.raises(UserError, match=message):
            make_plan(two_sources, replace(MIXED, sources=sources), tmp_path)
    with pytest.raises(UserError, match=r"data.validation.count=1000 leaves nothing to train on"):
        make_plan(two_sources, replace(MIXED, validation_count=1000), tmp_path)
    assert not (tmp_path / "plan.json").exists()


def test_imbalance_says_what_the_incomplete_step_costs(plan: PackPlan) -> None:
    everything, complete = plan.imbalance(8, 1), plan.imbalance(8, 1, complete_steps=True)
    assert 0 <= complete < everything < 1


def test_a_stream_whose_labels_all_begin_rows_is_an_error(tmp_path: Path) -> None:
    """The one label of each document is the first of a row, which nothing predicts."""
    document = StoredDocument(np.arange(4, dtype=np.uint16), np.array([2, 1, 1], np.int32), None)
    store = write_store(tmp_path / "tokens", [document] * 6, [0] * 6, [0])
    settings = PlanSettings(2, "drop", 0.0, 8, 3, packing="wrapped")
    made = make_plan(store, replace(settings, max_length=4), tmp_path / "plan")
    with pytest.raises(UserError, match=r"no row of data\.max_length=2 tokens has anything to learn; raise it"):
        make_plan(store, settings, tmp_path / "plan")
    assert PackPlan(tmp_path / "plan").hash == made.hash, "the plan before it is still there"


def test_a_wrapped_stream_takes_documents_of_any_length(store: TokenStore, tmp_path: Path) -> None:
    settings = PlanSettings(64, "drop", 0.0, 8, 3, packing="wrapped")
    plan = make_plan(store, settings, tmp_path)
    assert (store.index["length"] > 64).any()
    lost = plan.facts["tokens_in_rows_without_labels"]["train"]
    assert plan.train.tokens.sum() + lost == store.index["length"][store.index["trained"] > 0].sum()
    assert plan.facts["too_long"] == 0
