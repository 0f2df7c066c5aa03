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
        assert not ranks_of_this_process()
        with pytest.raises(UserError, match=r"rank [01]"):
            run_ranks(run, 2, resuming=True, while_running=once(moment, run, chance))
    run_ranks(run, 2, resuming=True, while_running=lambda: None)
    assert facts(run) == facts(untouched)
    assert len(facts(run)) == STEPS + 1 + STEPS // 20


Moment = Callable[[Path, random.Random], None]


def once(moment: Moment, run: Path, chance: random.Random) -> Callable[[], None]:
    """Wait for a moment and kill; the launcher, which calls this again and again, then finds out by itself."""
    left = [moment]

    def strike() -> None:
        if left:
            left.pop()(run, chance)
            ranks = ranks_of_this_process()
            for rank in chance.choice([ranks, ranks[:1], ranks[1:]]):
                os.kill(rank, signal.SIGKILL)

    return strike


def while_loading(run: Path, chance: random.Random) -> None:
    time.sleep(chance.uniform(0, 4))


def in_training(run: Path, chance: random.Random) -> None:
    """After one to `AHEAD` more lines of metrics, whatever the run does then."""
    wait_until(lambda: read_status(run).get("phase") == "training")
    target = lines(run) + chance.randint(1, AHEAD)
    wait_until(lambda: lines(run) >= target)
    time.sleep(chance.uniform(0, 0.05))


def while_saving(run: Path, chance: random.Random) -> None:
    wait_until(lambda: read_status(run).get("phase") == "saving")
    time.sleep(chance.uniform(0, 0.1))


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():
        assert len(ranks_of_this_process()) == 2, "nobody else may end them"
        time.sleep(0.002)


def lines(run: Path) -> int:
    return (run / METRICS).read_bytes().count(b"\n") if (run / METRICS).exists() else 0


def ranks_of_this_process() -> list[int]:
    """The ranks that run as children of this process, by number."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return sorted(child for child, command in commands.items() if b"sft.train" in command)


def facts(run: Path) -> list[tuple[int, str]]:
    """Every training and validation loss to the last bit."""
    found = [(line["step"], line.get("loss", line.get("validation_loss"))) for line in read_metrics(run)]
    return [(step, loss.hex()) for step, loss in found]
