"""Rows that did not become documents: what is written of them, and how their reasons are counted."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from data_tools.rejects import OTHERS, Reject, RejectReason, reason_lines, reject_reasons, top_reasons, writing_rejects


def test_a_reason_may_quote_what_is_no_unicode(tmp_path: Path) -> None:
    reject = Reject("chats.jsonl", 3, "rejected", "odd:rows refuses the row: ValueError: what is \ud800?")
    with writing_rejects(tmp_path / "rejects.jsonl") as rejects:
        rejects.append(reject)
    assert json.loads((tmp_path / "rejects.jsonl").read_text(encoding="utf-8")) == asdict(reject)
    said = top_reasons(reject_reasons(tmp_path / "rejects.jsonl"))
    assert said == r"1 × odd:rows refuses the row: ValueError: what is \ud800? (row 3 of chats.jsonl)"


def reasons_of(folder: Path, *rejects: Reject) -> list[RejectReason]:
    with writing_rejects(folder / "rejects.jsonl") as written:
        for reject in rejects:
            written.append(reject)
    return reject_reasons(folder / "rejects.jsonl")


def test_a_reason_keeps_its_numbers_and_a_row_that_has_it(tmp_path: Path) -> None:
    """Numbers are only left out where they differ, and then one example has them."""
    file = str(Path.cwd() / "data" / "chats.jsonl")
    reasons = reasons_of(
        tmp_path,
        *(Reject(file, row, "rejected", "`input_ids` has ids outside the vocabulary of 400") for row in (7, 8, 9)),
        *(Reject("/elsewhere/a.jsonl", row, "rejected", f"message {row} has 9 parts") for row in (3, 4)),
        Reject("s3://bucket/b.jsonl", 12345, "dropped", "nothing to train on"),
    )
    assert reason_lines(reasons) == [
        "3 rejected: `input_ids` has ids outside the vocabulary of 400 (row 7 of data/chats.jsonl)",
        "2 rejected: message … has … parts (row 3 of /elsewhere/a.jsonl: message 3 has 9 parts)",
        "1 dropped: nothing to train on (row 12,345 of s3://bucket/b.jsonl)",
    ]
    assert top_reasons(reasons).startswith("3 × `input_ids` has ids outside the vocabulary of 400 (row 7 of data/chats")
    assert "; 2 × message … has … parts (row 3 of /elsewhere/a.jsonl: message 3 has 9 parts); 1 ×" in top_reasons(
        reasons
    )


def test_only_the_most_frequent_reasons_are_told(tmp_path: Path) -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    lines = reason_lines(reasons_of(tmp_path, *(Reject("a", 0, "rejected", word) for word in words)))
    assert [line.split()[2] for line in lines[:5]] == words[:5]
    assert lines[5:] == ["and 2 rarer reasons; see rejects.jsonl"]


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
