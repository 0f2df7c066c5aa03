"""Packed rows: positions restart, no label crosses a border, labels are what the plan counted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_tools.plan import PackPlan, PlanSettings, SourceShare, make_plan
from data_tools.store import TokenStore
from sft.batches import make_batch
from tests.sft.models import IGNORE, labels_of, weights_of
from tests.stores import label_weights, random_documents, write_store


def test_a_row_is_its_documents_end_to_end(store: TokenStore, plan: PackPlan) -> None:
    borders_inside = 0
    for pack in range(len(plan.train)):
        batch = make_batch(store, plan.train, np.array([pack]))
        documents = [store.document(int(number)) for number in plan.train.packs[pack]]
        starts = batch.borders.tolist()
        assert len(starts) == len(documents) + 1
        for document, start, end in zip(documents, starts, starts[1:], strict=False):
            ids, runs = document.input_ids, document.mask_runs
            trained = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
            labels = [int(i) if t else IGNORE for i, t in zip(ids[1:], trained[1:], strict=True)]
            assert batch.input_ids[0, start:end].tolist() == ids.tolist()
            assert batch.positions[0, start:end].tolist() == list(range(end - start))
            assert labels_of(batch)[0, start:end].tolist() == [*labels, IGNORE]
        borders_inside += len(documents) - 1
        assert batch.documents.tolist() == plan.train.packs[pack].tolist()
        assert len(batch.targets.labels) == plan.train.trained[pack]
        assert batch.tokens == plan.train.tokens[pack] == batch.input_ids.shape[1]
        assert batch.longest == max(len(document.input_ids) for document in documents)
    assert borders_inside > 50, "without packs of several documents this test proves nothing"


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("how", [{"too_long": "split"}, {"packing": "wrapped", "too_long": "split"}])
def test_cut_documents_are_laid_out_piece_by_piece(weighted: bool, how: dict[str, Any], tmp_path: Path) -> None:
    documents = random_documents([5 + 13 * number % 90 for number in range(60)], seed=2, weighted=weighted)
    store = write_store(tmp_path / "tokens", documents, [0] * 60, [0])
    plan = make_plan(store, replace(PlanSettings(32, "drop", 0.0, 4, 0), **how), tmp_path / "plan")
    assert plan.train.cuts is not None
    columns = [plan.train.packs.documents, *plan.train.cuts]
    for pack in range(len(plan.train)):
        batch = make_batch(store, plan.train, np.array([pack]))
        place = slice(*plan.train.packs.offsets[pack : pack + 2])
        starts, borders = batch.borders.tolist(), batch.borders.tolist()[1:]
        for number, cut, length, start, end in zip(
            *(c[place].tolist() for c in columns), starts, borders, strict=False
        ):
            document = documents[number]
            ids, counts = document.input_ids[cut : cut + length].tolist(), label_weights(document)[cut : cut + length]
            labels = [*(i if count else IGNORE for i, count in zip(ids[1:], counts[1:], strict=True)), IGNORE]
            assert batch.input_ids[0, start:end].tolist() == ids
            assert batch.positions[0, start:end].tolist() == list(range(length))
            assert labels_of(batch)[0, start:end].tolist() == labels
            assert weights_of(batch)[0, start:end].tolist() == [*counts[1:].tolist(), 0]
        assert (batch.targets.weights is not None) == weighted
        assert len(batch.targets.labels) == plan.train.trained[pack]
        assert weighted or plan.train.weight[pack] == plan.train.trained[pack]
        assert float(weights_of(batch).sum()) == plan.train.weight[pack]


def test_labels_of_weight_0_are_none(weighted_store: TokenStore, tmp_path: Path) -> None:
    plan = make_plan(weighted_store, PlanSettings(256, "drop", 0.0, 6, 0), tmp_path)
    for pack in range(len(plan.train)):
        batch = make_batch(weighted_store, plan.train, np.array([pack]))
        assert len(batch.targets.labels) == plan.train.trained[pack]
        assert float(weights_of(batch).sum()) == plan.train.weight[pack]


def test_every_label_has_the_source_of_its_document(tmp_path: Path) -> None:
    documents = random_documents([5 + 13 * number % 90 for number in range(60)], seed=3)
    sources = [number % 3 for number in range(60)]
    store = write_store(tmp_path / "tokens", documents, sources, [0, 1, 2])
    plan = make_plan(store, PlanSettings(128, "drop", 0.0, 4, 0, sources=[SourceShare()] * 3), tmp_path / "plan")
    batch = make_batch(store, plan.train, np.arange(len(plan.train)))
    assert batch.targets.source_count == 3
    counted = np.bincount(batch.targets.sources.numpy(), minlength=3)
    assert counted.tolist() == [int(store.index["trained"][source::3].sum()) for source in range(3)]
    of_document = np.searchsorted(batch.borders.numpy(), batch.targets.places.numpy(), "right") - 1
    assert batch.targets.sources.tolist() == store.index["source"][batch.documents[of_document]].tolist()


def test_no_packs_give_one_token_without_label(store: TokenStore, plan: PackPlan) -> None:
    batch = make_batch(store, plan.train, np.array([], dtype=np.int64))
    assert batch.tokens == 0
    assert labels_of(batch).tolist() == [[IGNORE]]
    assert len(batch.documents) == len(batch.targets.sources) == 0
    assert batch.borders.dtype == torch.int32
