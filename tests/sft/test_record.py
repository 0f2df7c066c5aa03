"""metrics.jsonl survives kills and repeats nothing after a resume."""

from pathlib import Path

from sft.record import RunRecord, read_metrics


def test_a_line_that_a_kill_cut_is_not_read(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, 10, writes=True)
    for step in (1, 2, 3):
        record.log({"step": step, "loss": 1 / step})
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    record.rewind(2)
    record.log({"step": 3, "loss": 0.25})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": 0.25}]


def test_an_evaluation_that_will_be_made_again_is_forgotten(tmp_path: Path) -> None:
    """A run was stopped after step 2, evaluated when it went on, and killed before the next checkpoint."""
    record = RunRecord(tmp_path, 10, writes=True)
    lines = [{"step": 1, "validation_loss": 3.0}, {"step": 2, "loss": 0.5}, {"step": 2, "validation_loss": 2.0}]
    for line in lines:
        record.log(line)
    record.rewind(2)
    assert read_metrics(tmp_path) == lines
    record.rewind(2, evaluated=False)
    assert read_metrics(tmp_path) == lines[:2]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    record = RunRecord(tmp_path, 10, writes=False)
    record.status("training", 0)
    record.log({"step": 1})
    record.samples(1, [])
    record.rewind(0)
    assert list(tmp_path.iterdir()) == []
