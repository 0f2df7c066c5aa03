"""Cutting: every token where it belongs, every label counted, and nothing lost without being said."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import UserError
from data_tools.lengths import Pieces, cut_documents, length_report, wrap
from data_tools.store import StoredDocument, TokenStore
from tests.stores import label_weights, random_documents, write_store

LENGTHS = [3, 16, 17, 31, 32, 33, 48, 100, 8, 16, 5, 64]


@pytest.fixture(scope="module", params=[False, True], ids=["unweighted", "weighted"])
def mixed_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    documents = random_documents(LENGTHS * 5, seed=1, weighted=request.param)
    folder = tmp_path_factory.mktemp("store") / "tokens"
    return write_store(folder, documents, [0] * len(documents), [0])


def check_labels(pieces: Pieces, store: TokenStore) -> None:
    """Labels and weights of every piece are those of its tokens but the first."""
    for number, start, length, trained, weight in zip(
        *(column.tolist() for column in vars(pieces).values()), strict=True
    ):
        of_tokens = label_weights(store.document(number))[start + 1 : start + length]
        assert trained == (of_tokens > 0).sum()
        assert weight == of_tokens.sum()


def test_dropping_keeps_whole_documents(mixed_store: TokenStore) -> None:
    pieces, unlabelled = cut_documents(mixed_store, 32, "drop")
    assert pieces.documents.tolist() == [n for n, length in enumerate(LENGTHS * 5) if length <= 32]
    assert not pieces.starts.any()
    assert unlabelled == 0
    check_labels(pieces, mixed_store)


def test_truncating_keeps_the_first_tokens(mixed_store: TokenStore) -> None:
    pieces, unlabelled = cut_documents(mixed_store, 16, "truncate")
    assert not pieces.starts.any()
    assert (pieces.lengths == np.minimum(mixed_store.index["length"], 16)[pieces.documents]).all()
    check_labels(pieces, mixed_store)
    gone = set(range(len(mixed_store))) - set(pieces.documents.tolist())
    assert len(gone) == unlabelled > 0
    assert not any(label_weights(mixed_store.document(number))[1:16].any() for number in gone)


def test_splitting_keeps_every_label_but_those_at_the_cuts(mixed_store: TokenStore) -> None:
    pieces, unlabelled = cut_documents(mixed_store, 16, "split")
    check_labels(pieces, mixed_store)
    assert pieces.lengths.max() == 16
    assert len(pieces) + unlabelled == sum(-(-length // 16) for length in LENGTHS * 5)
    kept = 0
    for number in range(len(mixed_store)):
        of_tokens = label_weights(mixed_store.document(number)).copy()
        of_tokens[::16] = 0
        kept += int((of_tokens > 0).sum())
    assert pieces.trained.sum() == kept


def test_limits_that_nothing_meets(mixed_store: TokenStore) -> None:
    with pytest.raises(UserError, match=r"max_length=2 is shorter than every document .* raise it"):
        cut_documents(mixed_store, 2, "drop")
    with pytest.raises(UserError, match=r"20 documents have more than data.max_length=32 tokens \(the longest 100\)"):
        cut_documents(mixed_store, 32, "error")
    assert len(cut_documents(mixed_store, 100, "error")[0]) == len(mixed_store)


def test_wrapping_fills_every_row_but_the_last(mixed_store: TokenStore) -> None:
    whole, _ = cut_documents(mixed_store, 100, "drop")
    order = np.random.default_rng(0).permutation(len(whole))
    pieces, packs = wrap(mixed_store, whole.take(order), 24)
    check_labels(pieces, mixed_store)
    tokens = packs.sums(pieces.lengths)
    stream = np.concatenate([mixed_store.document(int(number)).input_ids for number in order])
    rows = [
        np.concatenate(
            [
                mixed_store.document(document).input_ids[start : start + length]
                for document, start, length in zip(
                    *(column[packs[row]].tolist() for column in (pieces.documents, pieces.starts, pieces.lengths)),
                    strict=True,
                )
            ]
        )
        for row in range(len(packs))
    ]
    expected = [stream[start : start + 24] for start in range(0, len(stream), 24)]
    assert all(len(row) == 24 for row in rows[:-1])
    missing = len(expected) - len(rows)
    found = [any(np.array_equal(row, wanted) for row in rows) for wanted in expected]
    assert sum(found) == len(rows)
    assert missing < len(expected) // 2, "rows without labels are rare"
    assert (packs.sums(pieces.trained) > 0).all()
    assert tokens.sum() == sum(len(row) for row in rows)


def test_plain_text_loses_only_the_labels_at_cuts(tmp_path: Path) -> None:
    ids = [np.arange(length, dtype=np.uint16) for length in (50, 30, 7, 1, 90)]
    documents = [StoredDocument(i, np.array([0, len(i)], np.int32), None) for i in ids]
    store = write_store(tmp_path / "tokens", documents, [0] * 5, [0])
    pieces, packs = wrap(store, Pieces.whole(store.index, np.arange(5)), 16)
    assert len(packs) == -(-178 // 16)
    assert pieces.lengths.sum() == 178
    assert (pieces.trained == pieces.lengths - 1).all()


def test_the_report_counts_what_a_limit_leaves_out() -> None:
    lengths = np.array([100, 2048, 2049, 5000, 10_000, 200_000], np.int32)
    report = length_report(lengths, 5000)
    assert report["documents"] == 6
    assert report["tokens"] == lengths.sum()
    assert report["percentiles"] == {"50": 2049, "90": 200_000, "95": 200_000, "99": 200_000, "100": 200_000}
    assert list(report["limits"]) == ["2048", "4096", "5000", "8192", "16384", "32768", "65536", "131072"]
    assert [limit["longer"] for limit in report["limits"].values()] == [4, 3, 2, 2, 1, 1, 1, 1]
    assert report["limits"]["5000"]["tokens_fit"] == pytest.approx(9197 / lengths.sum())
    assert report["limits"]["5000"]["tokens_kept"] == pytest.approx(19197 / lengths.sum())
