"""A run that is killed without warning twenty times has, in the end, the losses of one that nobody touched."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.store import TokenStore
from launcher.backends.local import run_ranks
from launcher.cli import main
from launcher.run_folder import read_status
from sft.record import METRICS, STATUS, read_metrics

KILLS, STEPS, AHEAD = 20, 60, 3
"""A killed run gets at most `AHEAD` steps further, so that `STEPS` are enough for all kills."""


def test_a_rank_that_dies_while_others_wait_for_it_is_named(recipe: Path, store: TokenStore, tmp_path: Path) -> None:
    """The first rank, which waits for the second to come, would do so for half an hour."""
    assert main(["plan", str(recipe), f"data.store={store.folder}", "--ranks", "2"]) == 0
    strike = once(lambda run, ranks: ranks[1:], tmp_path / "runs" / "tiny")
    with pytest.raises(UserError, match="rank 1 killed by SIGKILL"):
        run_ranks(tmp_path / "runs" / "tiny", 2, resuming=False, while_running=strike)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_loss(recipe: Path, store: TokenStore, tmp_path: Path) -> None:
    settings = [f"data.store={store.folder}", f"train.max_steps={STEPS}", "checkpoint.every=2", "evaluate.every=20"]
    assert main(["plan", str(recipe), *settings, "--ranks", "2"]) == 0
    assert main(["plan", str(recipe), *settings, "--ranks", "2", "name=untouched"]) == 0
    run, untouched = tmp_path / "runs" / "tiny", tmp_path / "runs" / "untouched"
    run_ranks(untouched, 2, resuming=False, while_running=lambda: None)

    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    moments = [chance.choice([while_loading, in_training, in_training, while_saving]) for _ in range(KILLS)]
    moments[:3] = [while_loading, in_training, while_saving]
    for moment in moments:
        (run / STATUS).unlink(missing_ok=True)

        def some(run: Path, ranks: list[int], moment: Moment = moment) -> list[int]:
            moment(run, ranks, chance)
            return chance.choice([ranks, ranks[:1], ranks[1:]])

        with pytest.raises(UserError, match=r"rank [01]"):
            run_ranks(run, 2, resuming=True, while_running=once(some, run))
    run_ranks(run, 2, resuming=True, while_running=lambda: None)
    assert facts(run) == facts(untouched)
    assert len(facts(run)) == STEPS + 1 + STEPS // 20


def once(choose: Callable[[Path, list[int]], list[int]], run: Path) -> Callable[[], None]:
    """Kill the ranks that are chosen, at the moment of the choice; the launcher then finds out by itself.

    To be called before they are started: they are the children that this process has not had before.
    """
    others, left = children(), [choose]

    def strike() -> None:
        if left:
            for rank in left.pop()(run, [child for child in children() if child not in others]):
                os.kill(rank, signal.SIGKILL)

    return strike


def children() -> list[int]:
    """Of this process, in the order of their start."""
    return [int(child) for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


Moment = Callable[[Path, list[int], random.Random], None]


def while_loading(run: Path, ranks: list[int], chance: random.Random) -> None:
    time.sleep(chance.uniform(0, 4))


def in_training(run: Path, ranks: list[int], chance: random.Random) -> None:
    """After one to `AHEAD` more lines of metrics, whatever the run does then."""
    wait_until(lambda: read_status(run).get("phase") == "training", ranks)
    target = lines(run) + chance.randint(1, AHEAD)
    wait_until(lambda: lines(run) >= target, ranks)
    time.sleep(chance.uniform(0, 0.05))


def while_saving(run: Path, ranks: list[int], chance: random.Random) -> None:
    wait_until(lambda: read_status(run).get("phase") == "saving", ranks)
    time.sleep(chance.uniform(0, 0.1))


def wait_until(holds: Callable[[], bool], ranks: list[int]) -> None:
    while not holds():
        states = [Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[0] for rank in ranks]
        assert "Z" not in states, "a rank ended, and nobody killed it"
        time.sleep(0.002)


def lines(run: Path) -> int:
    return (run / METRICS).read_bytes().count(b"\n") if (run / METRICS).exists() else 0


def facts(run: Path) -> list[tuple[int, str]]:
    """Every training and validation loss to the last bit."""
    lines = read_metrics(run)
    return [(line["step"], line[key].hex()) for line in lines for key in ("loss", "validation_loss") if key in line]
