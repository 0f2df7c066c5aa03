"""Fine-tune a model on a pack plan: this file is the loop, top to bottom.

Started once per rank, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set:

    python -m sft.train runs/NAME [--resume]
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from data_tools.chat import ChatTemplate
from data_tools.errors import UserError
from data_tools.tokenizer import load_tokenizer
from sft.batches import make_batch
from sft.checkpoint import Progress, commit_checkpoint, resume
from sft.engine import optimizer_step, start_engine
from sft.evaluate import probe_logits, sample_answers, validation_loss
from sft.metrics import Interval
from sft.model import PackedCausalLM, check_length, compute_dtype, load_model
from sft.record import RunRecord
from sft.run import TrainingRun
from sft.schedule import learning_rate_at, micro_batches_per_step
from sft.self_test import check_documents_are_apart
from sft.world import World, join_world


def train(run: TrainingRun, resuming: bool, world: World) -> None:
    """Train from the start, or from the newest checkpoint, to the last step."""
    session = start_session(run, world)
    progress = session.restore() if resuming else session.fresh()
    interval = Interval(run.plan.settings.max_length, world)
    for step in range(progress.step, run.total_steps):
        started = time.perf_counter()
        batches = [
            make_batch(run.store, run.plan.train, packs)
            for packs in run.plan.micro_batches(step, world.rank, world.size, run.train.packs_per_micro_batch)
        ]
        size = run.plan.size_of_step(step)
        learning_rate = learning_rate_at(step, run.total_steps, run.train.learning_rate, run.train.schedule)
        result = optimizer_step(session.engine, batches, size.weight, learning_rate, world)
        interval.add(result, size, time.perf_counter() - started)

        progress = replace(progress, step=step + 1, tokens=progress.tokens + size.tokens)
        last = progress.step == run.total_steps
        saving = last or progress.step % run.checkpoint.every == 0
        if saving or progress.step % run.train.log_every == 0:  # a resumed run begins with an empty interval
            session.log(progress, interval.summary(progress.step), learning_rate)
        if last or (run.evaluate.every and progress.step % run.evaluate.every == 0):
            session.evaluate(progress.step)
        if saving:
            session.save(progress)
    session.record.status("finished", run.total_steps)


@dataclass(frozen=True)
class Session:
    """A run in memory, and what the loop does with it besides optimizer steps."""

    run: TrainingRun
    world: World
    engine: Any
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    record: RunRecord

    def fresh(self) -> Progress:
        """Begin at step 0 with a look at the untrained model."""
        self.record.rewind(-1)
        self.evaluate(0)
        return Progress(0, 0, self.run.plan.hash, self.run.train.zero.stage, self.world.size)

    def restore(self) -> Progress:
        """Go on from the newest good checkpoint, or begin when there is none."""
        progress = resume(self.engine, self.run.checkpoints, self.run.plan.hash, self.run.train.zero.stage, self.world)
        if progress is None:
            return self.fresh()
        self.record.rewind(progress.step)
        self.record.status("training", progress.step)
        return progress

    def log(self, progress: Progress, summary: dict[str, float], learning_rate: float) -> None:
        """Write one line of metrics."""
        self.record.log(
            {
                "step": progress.step,
                "epoch": progress.step / self.run.plan.steps_per_epoch,
                **summary,
                "learning_rate": learning_rate,
                "num_tokens": progress.tokens,
            }
        )

    def evaluate(self, step: int) -> None:
        """Validation loss and sample answers."""
        self.record.status("evaluating", step)
        loss = validation_loss(self.engine, self.run.store, self.run.plan, self.world)
        if loss is not None:
            self.record.log({"step": step, "validation_loss": loss, "perplexity": math.exp(min(loss, 700.0))})
        settings, model = self.run.evaluate, self.engine.module
        synced = self.run.train.zero.stage == 3  # all ranks go through the layers together, to the longest answer
        answers = sample_answers(
            model, self.tokenizer, self.template, settings.samples, settings.max_new_tokens, self.world.device, synced
        )
        self.record.samples(step, answers)
        self.record.status("training", step)

    def save(self, progress: Progress) -> None:
        """Commit a checkpoint."""
        self.record.status("saving", progress.step)
        probe = probe_logits(self.engine.module, self.run.store, self.world.device)
        keep = self.run.checkpoint.keep_last
        commit_checkpoint(self.engine, self.run.checkpoints, progress, probe, self.world, keep)
        self.record.status("training", progress.step)


def start_session(run: TrainingRun, world: World) -> Session:
    """Load model and tokenizer and start the engine."""
    micro_batches_per_step(run.train, world.size)  # says at once when the packs cannot be shared out
    record = RunRecord(run.folder, run.total_steps, writes=world.is_main)
    record.status("loading", 0)
    tokenizer = load_tokenizer(str(run.store.folder / "tokenizer"))
    template = ChatTemplate(str(tokenizer.chat_template), tokenizer.special_tokens_map, run.template_date)
    dtype = compute_dtype(run.model, world.device)
    model = PackedCausalLM(load_model(run.model, tokenizer, run.store.vocab_size, dtype, run.train.seed))
    check_length(model.model.config, run.plan.settings.max_length)
    check_documents_are_apart(model.to(world.device), world.device)
    engine = start_engine(model, run.train, dtype, world)
    return Session(run, world, engine, tokenizer, template, record)


def main() -> int:
    """Entry of a rank: 0 when training finished, 1 when it did not."""
    parser = argparse.ArgumentParser(prog="python -m sft.train", description="One rank of a training run.")
    parser.add_argument("run", type=Path, help="the run's folder, with run.yaml and plan/")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    arguments = parser.parse_args()
    try:
        train(TrainingRun.open(arguments.run), arguments.resume, join_world())
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
