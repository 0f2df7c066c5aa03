"""Fine-tune a model on a pack plan: this file is the loop, top to bottom.

Started once per rank, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set:

    python -m sft.train runs/NAME [--resume]
"""

import argparse
import sys
from pathlib import Path

from data_tools.errors import UserError
from sft.clock import Clock
from sft.due import what_is_due
from sft.engine import optimizer_step
from sft.metrics import Interval
from sft.run import TrainingRun
from sft.session import start_session
from sft.world import World, join_world

FINISHED, FAILED, STOPPED = 0, 1, 85
"""Exit codes; 85: a checkpoint is committed, and the run wants to go on later."""


def train(run: TrainingRun, resuming: bool, world: World) -> int:
    """Train from the start, or from the newest checkpoint, to the last step; returns the exit code."""
    session = start_session(run, world)
    progress = session.restore() if resuming else session.fresh()
    clock = Clock()
    interval = Interval(run.plan.settings.max_length, world, clock)
    while progress.step < run.total_steps:
        with clock.part("data"):
            batches = session.batches(progress.step)
        size = run.plan.size_of_step(progress.step)
        rate = session.learning_rate(progress.step)
        result = optimizer_step(session.engine, batches, size.weight, rate, world, clock)
        progress = progress.after(size)
        interval.add(result, size)

        due = what_is_due(progress.step, run.total_steps, run.train, run.evaluate, run.checkpoint, stopping=False)
        if due.log:
            session.log(progress, interval)
        if due.evaluate:
            progress = session.evaluate(progress)
        if due.save:
            session.save(progress)
        if due.leave:
            return STOPPED
    session.record.status("finished", progress.step)
    return FINISHED


def main() -> int:
    """Entry of a rank; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m sft.train", description="One rank of a training run.")
    parser.add_argument("run", type=Path, help="the run's folder, with run.yaml and plan/")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    arguments = parser.parse_args()
    try:
        return train(TrainingRun.open(arguments.run), arguments.resume, join_world())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
