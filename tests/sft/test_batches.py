"""Packed rows: positions restart, no label crosses a border, labels are what the plan counted."""

import numpy as np
import torch

from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.batches import IGNORE, make_batch


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
            assert batch.labels[0, start:end].tolist() == [*labels, IGNORE]
        borders_inside += len(documents) - 1
        assert int((batch.labels != IGNORE).sum()) == plan.train.trained[pack]
        assert batch.tokens == plan.train.tokens[pack] == batch.input_ids.shape[1]
        assert batch.longest == max(len(document.input_ids) for document in documents)
    assert borders_inside > 50, "without packs of several documents this test proves nothing"


def test_no_packs_give_one_token_without_label(store: TokenStore, plan: PackPlan) -> None:
    batch = make_batch(store, plan.train, np.array([], dtype=np.int64))
    assert batch.tokens == 0
    assert batch.labels.tolist() == [[IGNORE]]
    assert batch.borders.dtype == torch.int32
