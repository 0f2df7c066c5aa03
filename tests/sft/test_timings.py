"""What a run measures of itself, for whoever has to ask it in time."""

import json
import time
from pathlib import Path

from sft.timings import TIMINGS, Timings


def one_start(folder: Path, steps: list[float], save: float, writes: bool = True) -> dict[str, float]:
    timings = Timings(folder, writes)
    for seconds in steps:
        with timings.step():
            time.sleep(seconds)
    with timings.save():
        time.sleep(save)
    timings.write()
    written: dict[str, float] = json.loads((folder / TIMINGS).read_text()) if writes else {}
    return {name: round(seconds, 1) for name, seconds in written.items()}


def test_the_longest_of_all_starts_are_kept(tmp_path: Path) -> None:
    first = one_start(tmp_path, [0.2], 0.0)
    assert first == {"longest_step": 0.2, "longest_save": 0.0, "longest_copy": 0.0}, "there is no other step"
    second = one_start(tmp_path, [0.5, 0.1, 0.3, 0.0], 0.2)
    assert second == {"longest_step": 0.3, "longest_save": 0.2, "longest_copy": 0.0}, (
        "programs are compiled in the first"
    )
    assert one_start(tmp_path, [0.0, 0.0], 0.0) == second


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    assert one_start(tmp_path, [0.0], 0.0, writes=False) == {}
    assert not list(tmp_path.iterdir())
