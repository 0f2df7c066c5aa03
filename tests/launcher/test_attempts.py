"""Whether a training job starts again: by what it committed, and within two budgets."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.errors import OutOfReach, UserError
from data_tools.files import writing
from launcher import attempts
from launcher.attempts import Budget, decide
from launcher.jobs import STAGES, jobs_of
from sft.exits import FINISHED, MISTAKE, STOPPED
from sft.record import note_mistake
from sft.timings import Timings

BUDGET = Budget(max_failures=2, max_stops=3)


def start(before: int, after: int, why: str) -> list[dict[str, Any]]:
    """With a commit for each step."""
    return [
        {"begin": "", "step": before, "committed": before},
        {"end": "", "step": after, "why": why, "committed": after},
    ]


REPEATED: list[dict[str, Any]] = [
    {"begin": "", "step": 600, "committed": 100.0},
    {"end": "", "step": 600, "why": "failed", "committed": 200.0},
]
"""The checkpoint of step 600 was damaged; the start went on from 400 and came to 600 again."""


@pytest.mark.parametrize(
    ("history", "requeue"),
    [
        (start(-1, 30, "finished"), False),
        (start(0, 10, "stopped by a person"), False),
        (start(-1, 10, "stopped"), True),
        (start(-1, -1, "failed"), False),  # a crash loop ends after one start
        (start(10, 10, "failed"), False),
        (REPEATED, True),
        ([*start(0, 10, "refused")[:1], {**start(0, 10, "refused")[1], "reason": "the disk is full"}], False),
        (start(0, 10, "failed"), True),
        (start(10, 10, "cut off"), True),  # the scheduler took the machine while the model was loaded
        (start(10, 10, "cut off") * 2, False),  # and again: the limit is too short
        (start(0, 10, "failed") + start(10, 20, "failed"), True),
        (start(0, 10, "failed") + start(10, 20, "failed") + start(20, 30, "failed"), False),
        (start(0, 1, "stopped") + start(1, 2, "stopped") + start(2, 3, "stopped"), True),
        (start(0, 1, "stopped") * 4, False),
        (start(0, 9, "stopped") * 3 + start(9, 12, "failed"), True),  # each has a budget of its own
        ([{"begin": "", "step": 5}] * 2 + start(5, 9, "failed"), False),  # two nodes went away without a word
    ],
)
def test_what_comes_after_a_start(history: list[dict[str, Any]], requeue: bool) -> None:
    assert decide(history, BUDGET).requeue is requeue


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["failed", "stopped", "cut off"])), min_size=1))
def test_starting_again_comes_to_an_end(ends: list[tuple[int, str]]) -> None:
    """However starts end, no more follow than both budgets allow."""
    history: list[dict[str, Any]] = []
    step = 0
    for number, (gained, why) in enumerate(ends):
        history += start(step, step + gained, why)
        step += gained
        if not decide(history, BUDGET).requeue:
            return
        assert number + 1 <= BUDGET.max_failures + BUDGET.max_stops


def commit(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "commit.json").write_text("{}")


def test_a_start_and_its_end_are_noted(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"phase": "stopped", "reason": "a signal"}')
    port, deadline = attempts.begin(tmp_path, limit=time.time() + 10_000, job=7)
    assert 20_000 <= port < 32_000
    assert deadline == pytest.approx(time.time() + 10_000 - 300, abs=5)
    commit(tmp_path, 40)
    decision = attempts.end(tmp_path, code=1, asked="no")  # what it said of itself before does not count
    assert decision.requeue
    assert [line.get("why", "begin") for line in attempts.read_attempts(tmp_path)] == ["begin", "failed"]


def test_launched_anew_its_budgets_are_whole(tmp_path: Path) -> None:
    attempts.write_budget(tmp_path, attempts.Budget(max_failures=1, max_stops=1), lead=None)
    for launch in range(2):
        attempts.note_launch(tmp_path)
        for start, requeue in enumerate((True, False)):
            attempts.note_begin(tmp_path, job=launch)
            commit(tmp_path, 10 * launch + start + 1)
            assert attempts.end(tmp_path, code=1, asked="no").requeue is requeue


@pytest.mark.parametrize(
    ("code", "asked", "status", "why"),
    [
        (FINISHED, "no", {"phase": "finished", "reason": "all steps are done"}, "finished"),
        (0, "no", {}, "cut off"),  # SIGTERM ended the ranks while they were starting
        (0, "no", {"phase": "loading", "reason": ""}, "cut off"),
        (0, "USR1", {"phase": "stopped", "reason": "the stop file"}, "stopped"),
        (137, "no", {"phase": "finished", "reason": "all steps are done"}, "finished"),  # it took long to go
        (STOPPED, "USR1", {"phase": "stopped", "reason": "the stop file"}, "stopped"),
        (STOPPED, "no", {"phase": "stopped", "reason": "the deadline"}, "stopped"),
        (STOPPED, "no", {"phase": "stopped", "reason": "the stop file"}, "stopped by a person"),
        (143, "TERM", {"phase": "stopped", "reason": "the stop file"}, "stopped"),  # srun ended the last ranks
        (137, "TERM", {"phase": "training", "reason": ""}, "cut off"),
        (137, "no", {"phase": "training", "reason": ""}, "failed"),
        (86, "no", {"phase": "training", "reason": ""}, "failed"),
    ],
)
def test_why_a_start_ended(code: int, asked: str, status: dict[str, str], why: str, tmp_path: Path) -> None:
    attempts.note_begin(tmp_path, job=1)
    (tmp_path / "status.json").write_text(json.dumps(status))
    assert attempts.end(tmp_path, code, asked).finished is (why == "finished")
    noted = attempts.read_attempts(tmp_path)[-1]
    assert noted["why"] == why
    assert noted["code"] == (STOPPED if why.startswith("stopped") else code)


def test_a_mistake_is_told_and_not_tried_again(tmp_path: Path) -> None:
    attempts.note_begin(tmp_path, job=1)
    commit(tmp_path, 40)
    note_mistake(tmp_path / "nowhere", UserError("nowhere is not a run"))
    note_mistake(tmp_path, UserError("nothing is noted where no run is"))
    assert not (tmp_path / "nowhere").exists() and not (tmp_path / MISTAKE).exists()
    (tmp_path / "run.yaml").touch()
    note_mistake(tmp_path, UserError("step 41: the loss is nan"))
    decision = attempts.end(tmp_path, code=1, asked="no")
    assert not decision.requeue and "step 41: the loss is nan; when that is mended" in decision.why
    attempts.note_launch(tmp_path)
    attempts.note_begin(tmp_path, job=1)
    commit(tmp_path, 50)
    assert attempts.end(tmp_path, code=1, asked="no").requeue


def test_what_is_out_of_reach_may_come_back(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").touch()
    attempts.note_begin(tmp_path, job=1)
    commit(tmp_path, 40)
    with pytest.raises(OutOfReach) as lost, writing("s3://tokens"):
        raise ConnectionError("reset by peer")
    note_mistake(tmp_path, lost.value)
    assert attempts.end(tmp_path, code=1, asked="no").requeue
    with pytest.raises(UserError) as refused, writing("s3://tokens"):
        raise PermissionError("no")
    attempts.note_begin(tmp_path, job=1)
    commit(tmp_path, 50)
    note_mistake(tmp_path, refused.value)
    assert not attempts.end(tmp_path, code=1, asked="no").requeue


def test_an_end_whose_start_is_not_known_is_decided(tmp_path: Path) -> None:
    """A launch in between has made the budgets whole."""
    attempts.note_begin(tmp_path, job=1)
    attempts.note_launch(tmp_path)
    assert attempts.end(tmp_path, STOPPED, asked="USR1").requeue
    assert not attempts.end(tmp_path, code=1, asked="no").requeue


def test_the_lead_is_what_was_asked_for_or_half_of_a_short_limit(tmp_path: Path) -> None:
    limit = time.time() + 100
    assert attempts.begin(tmp_path, limit, job=1)[1] == pytest.approx(limit - 50, abs=2)
    attempts.write_budget(tmp_path, BUDGET, lead=20)
    assert attempts.begin(tmp_path, limit, job=1)[1] == pytest.approx(limit - 20, abs=2)
    assert attempts.budget_of(tmp_path) == BUDGET


def test_the_lead_is_by_what_training_measured(tmp_path: Path) -> None:
    assert attempts.lead_seconds(tmp_path) == 300
    timings = Timings(tmp_path, writes=True)
    timings.copied(400)
    timings.write()
    assert attempts.lead_seconds(tmp_path) == 60 + 2 * 400


def test_starts_that_end_without_a_word_come_to_an_end(tmp_path: Path) -> None:
    attempts.write_budget(tmp_path, BUDGET, lead=None)
    for _ in range(3):
        attempts.begin(tmp_path, 0, job=1)
    with pytest.raises(SystemExit, match="3 starts ended without a word"):
        attempts.begin(tmp_path, 0, job=1)


def test_ports_are_free_and_differ_by_job_and_start() -> None:
    first = attempts.free_port(job=1, restarts=0)
    assert first != attempts.free_port(job=1, restarts=1) != attempts.free_port(job=2, restarts=0)
    with socket.socket() as taken:
        taken.bind(("", first + 1))
        assert attempts.free_port(job=1, restarts=0) > first + 1


def test_a_chain_waits_stage_for_stage() -> None:
    from launcher.cluster import ClusterConfig

    arrays = jobs_of(ClusterConfig.model_validate({"prepare": {"how": "array", "tasks": 5}}), STAGES, 3, 60)
    assert [(job.stage, job.after, job.array) for job in arrays] == [
        ("prepare-shares", None, 5),
        ("prepare", "prepare-shares", 1),
        ("train", "prepare", 3),
        ("export", "train", 3),
    ]
    assert [job.stage for job in jobs_of(ClusterConfig(fetch="job"), ("fetch", "train"), 1, 60)] == ["fetch", "train"]
