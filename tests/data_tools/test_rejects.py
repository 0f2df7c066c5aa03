"""Rows that did not become documents: what is written of them, and how their reasons are counted."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from data_tools.rejects import OTHERS, Reject, reject_reasons, top_reasons, writing_rejects


def test_a_reason_may_quote_what_is_no_unicode(tmp_path: Path) -> None:
    reject = Reject("chats.jsonl", 3, "rejected", "odd:rows refuses the row: ValueError: what is \ud800?")
    with writing_rejects(tmp_path / "rejects.jsonl") as rejects:
        rejects.append(reject)
    assert json.loads((tmp_path / "rejects.jsonl").read_text(encoding="utf-8")) == asdict(reject)
    said = top_reasons(reject_reasons(tmp_path / "rejects.jsonl"))
    assert said == r"1 × odd:rows refuses the row: ValueError: what is \ud800? (row 3 of chats.jsonl)"


def test_without_rejects_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rejects.jsonl").write_text("of an earlier attempt")
    with writing_rejects(tmp_path / "rejects.jsonl"):
        pass
    with pytest.raises(KeyboardInterrupt), writing_rejects(tmp_path / "other.jsonl") as rejects:
        rejects.append(Reject("chats.jsonl", 0, "dropped", "nothing to train on"))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_reasons_of_their_own_are_counted_together(tmp_path: Path) -> None:
    """A reason that quotes the row is another one each time; memory stays bounded, and no row is left out."""
    with writing_rejects(tmp_path / "rejects.jsonl") as rejects:
        for row in range(3000):
            word = "".join(chr(ord("a") + int(digit)) for digit in str(row))
            rejects.append(Reject("chats.jsonl", row, "rejected", f"what is {word}?" if row % 2 else f"column {row}"))
    reasons = reject_reasons(tmp_path / "rejects.jsonl")
    assert [(reason.reason, reason.count) for reason in reasons[:2]] == [("column …", 1500), (OTHERS, 501)]
    assert sum(reason.count for reason in reasons) == 3000
    assert len(reasons) == 1001
