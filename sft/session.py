"""A run in memory, and what the loop does with it besides optimizer steps."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from data_tools.chat import ChatTemplate
from data_tools.errors import UserError
from sft.answers import sample_answers
from sft.batches import Batch, make_batch, split_batch
from sft.best import best_validation, why_no_more
from sft.checkpoint import commit_checkpoint, delete_old, resume
from sft.copies import Copies
from sft.due import what_is_due
from sft.flops import flops_of_steps, peak_flops
from sft.heartbeat import Heart
from sft.metrics import Interval, metrics_of
from sft.nan import check_finite
from sft.probe import probe_logits, same_logits
from sft.progress import Progress, checkpoint_path
from sft.record import RunRecord
from sft.run import TrainingRun
from sft.schedule import learning_rate_at
from sft.sequence import SequenceGroup
from sft.stop import Stop, StopAsked
from sft.timings import Timings
from sft.trackers import Trackers
from sft.validate import validate
from sft.world import World


@dataclass(frozen=True)
class Session:
    """A run in memory on one rank."""

    run: TrainingRun
    world: World
    engine: Any
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    record: RunRecord
    model_hash: str
    group: SequenceGroup
    stop: Stop
    heart: Heart
    timings: Timings
    copies: Copies | None
    """Where checkpoints are copied, the main rank has them, or the first of each node that has a folder of its own."""

    def fresh(self) -> Progress:
        """Begin at step 0 with a look at the untrained model."""
        if self.copies is not None and self.world.is_main:
            self.copies.begin()
        self.record.rewind(-1)
        progress = self._track(
            Progress(
                step=0,
                tokens=0,
                trained_tokens=0,
                plan_hash=self.run.plan.hash,
                model_hash=self.model_hash,
                zero_stage=self.run.train.zero.stage,
                ranks=self.world.size,
                evaluated=False,
                validations=(),
                trackers={},
            )
        )
        return self.evaluate(progress) if self.run.evaluate.on_start else progress

    def restore(self) -> Progress:
        """Go on from the newest good checkpoint, or begin when there is none."""
        run, world = self.run, self.world
        progress = resume(self.engine, run.checkpoints, run.plan.hash, self.model_hash, run.train, world, self.copies)
        if progress is None:
            return self.fresh()
        self._check_base(progress)
        self.record.rewind(progress.step, progress.evaluated)
        self.record.status("training", progress.step)
        progress = self._track(progress)
        run, step = self.run, progress.step
        due = what_is_due(step, run.total_steps, run.train, run.evaluate, run.checkpoint, stopping=False)
        if due.evaluate and not progress.evaluated:  # the run was stopped before this evaluation, or in it
            progress = self.evaluate(progress)
            if self.wants_checkpoint(progress):
                self.save(progress)
                return progress
        self._offer_what_is_not_copied(checkpoint_path(run.checkpoints, step))
        return progress

    def _check_base(self, progress: Progress) -> None:
        """Does the model compute what it did? Of its configuration, and of the weights below adapters, a checkpoint
        has nothing.
        """
        saved = torch.load(checkpoint_path(self.run.checkpoints, progress.step) / "probe.pt", weights_only=True)
        now = probe_logits(self.engine.module, self.run.store, self.world.device)
        if not same_logits(now["logits"], saved):
            changed = "configuration was" if self.run.model.lora is None else "weights or configuration were"
            raise UserError(
                f"{self.run.model.path or 'model.config'} computes something else than when {self.run.folder} was "
                f"trained on it: its {changed} changed; bring them back, or start another run with name=NAME"
            )

    def _track(self, progress: Progress) -> Progress:
        """Start the trackers, where a line of metrics is written."""
        if not self.world.is_main:
            return progress
        trackers = Trackers(self.run.track, self.run, progress.trackers, progress.step)
        self.record.also(trackers.send)
        return replace(progress, trackers=trackers.ids)

    def batches(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step, from 0."""
        plan, group = self.run.plan, self.group
        shares = plan.micro_batches(step, group.data_rank, group.data_ranks, self.run.train.packs_per_micro_batch)
        return [split_batch(make_batch(self.run.store, plan.train, packs), group) for packs in shares]

    def learning_rate(self, step: int) -> float:
        """The rate of a step, from 0."""
        return learning_rate_at(step, self.run.total_steps, self.run.train.learning_rate, self.run.train.schedule)

    def log(self, progress: Progress, interval: Interval) -> None:
        """Write one line of metrics.

        Raises:
            UserError: a loss or gradient since the last line was not finite.
        """
        summary, model, world = interval.read(), self.engine.module.model, self.world
        check_finite(summary, progress.step, self.run, world.size)
        sources = [source["name"] for source in self.run.store.manifest["sources"]]
        flops, peak = flops_of_steps(model, summary.sizes), peak_flops(world.device, model.dtype)
        self.record.log(
            {
                "step": progress.step,
                "epoch": progress.step / self.run.plan.steps_per_epoch,
                **metrics_of(summary, sources, flops, peak, world.size),
                "learning_rate": self.learning_rate(progress.step - 1),
                "num_tokens": progress.tokens,
                "trained_tokens": progress.trained_tokens,
            }
        )

    def why_over(self, progress: Progress) -> str:
        """Why there is nothing more to do; empty: there is."""
        if progress.step >= self.run.total_steps and progress.evaluated:
            return "all steps are done"
        return why_no_more(progress.validations, self.run.evaluate.early_stopping)

    def wants_checkpoint(self, progress: Progress) -> bool:
        """Whether what the ranks agreed on or an evaluation found has to be committed, at whatever step that is."""
        best = best_validation(progress.validations) if self.run.checkpoint.keep_best else None
        is_best = progress.evaluated and best is not None and best[0] == progress.step
        return is_best or bool(self.stop.reason or self.why_over(progress))

    def evaluate(self, progress: Progress) -> Progress:
        """Validation loss and sample answers; what was found is part of the progress.

        When the run is asked to stop meanwhile, the progress comes back as it was: it is evaluated when it goes on.
        """
        self.record.status("evaluating", progress.step)
        try:
            return self._evaluate(progress)
        except StopAsked:
            return progress
        finally:
            self.record.status("training", progress.step)

    def _evaluate(self, progress: Progress) -> Progress:
        step = progress.step
        validation = validate(self.engine, self.run.store, self.run.plan, self.world, self._between)
        settings, model = self.run.evaluate, self.engine.module
        synced = self.run.train.zero.stage == 3  # all ranks go through the layers together, to the longest answer
        answers = sample_answers(
            model,
            self.tokenizer,
            self.template,
            settings.samples,
            settings.max_new_tokens,
            self.world.device,
            synced,
            self._between,
            self._alive,
        )
        if validation:
            self.record.log({"step": step, **validation})
            progress = replace(progress, validations=(*progress.validations, (step, validation["validation_loss"])))
        self.record.samples(step, answers)
        return replace(progress, evaluated=True)

    def _alive(self) -> None:
        self.heart.progress("evaluating")

    def _between(self) -> None:
        self._alive()
        self.stop.abandon_if_asked()

    def save(self, progress: Progress) -> None:
        """Commit a checkpoint, then ask whether to stop: it would be the place for it."""
        self.heart.progress("saving")
        self.record.status("saving", progress.step)
        with self.timings.save():
            probe = probe_logits(self.engine.module, self.run.store, self.world.device)
            path = commit_checkpoint(self.engine, self.run.checkpoints, progress, probe, self.world)
        if self.copies is not None:
            self.copies.offer(path)
            self.timings.copied(self.copies.longest)
        self.timings.write()
        self._delete_old()
        self.heart.progress("training")
        self.record.status("training", progress.step)
        self.stop.ask()

    def _delete_old(self) -> None:
        if self.world.keeps_folder:
            used = self.copies.busy() if self.copies is not None else ()
            delete_old(self.run.checkpoints, self.run.checkpoint, used)

    def _offer_what_is_not_copied(self, checkpoint: Path) -> None:
        """An earlier part of the run may have ended before its last checkpoint was copied."""
        if self.copies is not None:
            try:
                copied = self.copies.names()
            except UserError:
                copied = []  # copying will say it
            if checkpoint.name not in copied:
                self.copies.offer(checkpoint)

    def _finish_copies(self, step: int) -> str:
        """Wait for the copy of the last checkpoint; returns why there is none. The ranks wait together, and come to
        each other's mind every second: nobody misses them, however long it takes.
        """
        copies = self.copies
        if copies is not None and copies.busy():
            self.record.status("copying", step)
            print(f"waiting until the last checkpoint is copied to {copies.location}", flush=True)
        while self.world.max(int(copies is not None and copies.wait(1.0))):
            self.heart.progress("copying")
        self._delete_old()
        if copies is None or not copies.trouble:
            return ""
        return f"the last checkpoint is only here, it could not be copied: {copies.trouble}"

    def leave(self, progress: Progress) -> bool:
        """Say how the run ended; returns whether it was stopped before it was over."""
        warning = self._finish_copies(progress.step)
        over = self.why_over(progress)
        stopped = not over
        reason = self.stop.reason if stopped else over
        self.record.status("stopped" if stopped else "finished", progress.step, reason, warning)
        self.world.barrier()  # the first rank to exit may end the others
        self.heart.end()
        return stopped
