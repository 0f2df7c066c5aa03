"""Fine-tune a model on a pack plan: this file is the loop, top to bottom.

Started once per rank, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set:

    python -m sft.train runs/NAME [--resume]
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from data_tools.errors import UserError
from sft.clock import Clock
from sft.due import what_is_due
from sft.engine import optimizer_step
from sft.exits import FAILED, FINISHED, STOPPED, exit_now
from sft.heartbeat import longest_wait
from sft.metrics import Interval
from sft.record import note_mistake
from sft.run import TrainingRun
from sft.start import start_session
from sft.stop import listen, stop_listening
from sft.world import World, join_world


def train(run: TrainingRun, resuming: bool, world: World, signalled: Callable[[], bool]) -> int:
    """Train from the start, or from the newest checkpoint, to the last step; returns the exit code.

    Args:
        signalled: says whether this rank was told to stop.
    """
    session = start_session(run, world, signalled)
    progress = session.restore() if resuming else session.fresh()
    clock = Clock()
    interval = Interval(run.plan.settings.max_length, world, clock)
    while not session.stop.reason and not session.why_over(progress):
        with session.timings.step():
            session.heart.progress("training")
            with clock.part("data"):
                batches = session.batches(progress.step)
            size = run.plan.size_of_step(progress.step)
            rate = session.learning_rate(progress.step)
            result = optimizer_step(session.engine, batches, size.weight, rate, world, clock)
            progress = progress.after(size)
            interval.add(result, size)

            stopping = session.stop.ask()
            due = what_is_due(progress.step, run.total_steps, run.train, run.evaluate, run.checkpoint, stopping)
            if due.log:  # a GPU is waited for here
                session.log(progress, interval)
        if due.evaluate:
            progress = session.evaluate(progress)
        if due.save or session.wants_checkpoint(progress):
            session.save(progress)
    return STOPPED if session.leave(progress) else FINISHED


def main() -> int:
    """Entry of a rank; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sft.train", description="One rank of a training run.")
    parser.add_argument("run", type=Path, help="the run's folder, with run.yaml and plan/")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    arguments = parser.parse_args()
    signalled = listen()
    try:
        run = TrainingRun.open(arguments.run)
        world = join_world(longest_wait(run.train.hang_timeout))
        code = train(run, arguments.resume, world, signalled)
        world.leave()
        stop_listening()
        return code
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        if isinstance(error, UserError):
            note_mistake(arguments.run, error)
        return FAILED


if __name__ == "__main__":
    exit_now(main())
