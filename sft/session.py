"""A run in memory, and what the loop does with it besides optimizer steps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_tools.chat import ChatTemplate
from data_tools.errors import UserError
from data_tools.tokenizer import load_tokenizer, template_of
from sft.answers import sample_answers
from sft.attention import check_heads, choose_attention
from sft.batches import Batch, make_batch, split_batch
from sft.best import best_validation, why_no_more
from sft.checkpoint import Progress, checkpoint_path, commit_checkpoint, resume
from sft.due import what_is_due
from sft.engine import start_engine
from sft.fits import check_weights_fit
from sft.flops import flops_of_steps, peak_flops
from sft.heartbeat import Heart
from sft.layers import check_liger, compile_layers, forget_activations, use_liger
from sft.lora import add_lora, check_packages, check_quantize
from sft.metrics import Interval, metrics_of
from sft.model import PackedCausalLM, check_length, compute_dtype, load_config, load_model, model_hash
from sft.nan import check_finite
from sft.probe import probe_logits, same_logits
from sft.record import RunRecord
from sft.run import TrainingRun
from sft.schedule import learning_rate_at
from sft.self_test import check_documents_are_apart
from sft.sequence import SequenceGroup, join_sequence_group
from sft.stop import Stop, StopAsked
from sft.trackers import Trackers, check_trackers
from sft.validate import validate
from sft.world import World
from sft.zero import check_device, check_train


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

    def fresh(self) -> Progress:
        """Begin at step 0 with a look at the untrained model."""
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
        run = self.run
        progress = resume(self.engine, run.checkpoints, run.plan.hash, self.model_hash, run.train, self.world)
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

    def _check_base(self, progress: Progress) -> None:
        """A checkpoint of adapters has not the weights below them: do they still compute what they did?"""
        if self.run.model.lora is None:
            return
        saved = torch.load(checkpoint_path(self.run.checkpoints, progress.step) / "probe.pt", weights_only=True)
        now = probe_logits(self.engine.module, self.run.store, self.world.device)
        if not same_logits(now["logits"], saved):
            raise UserError(
                f"{self.run.model.path} computes something else than when {self.run.folder} was trained on it: its "
                f"weights were changed; bring them back, or start another run with name=NAME"
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
        )
        if validation:
            self.record.log({"step": step, **validation})
            progress = replace(progress, validations=(*progress.validations, (step, validation["validation_loss"])))
        self.record.samples(step, answers)
        return replace(progress, evaluated=True)

    def _between(self) -> None:
        self.heart.progress("evaluating")
        self.stop.abandon_if_asked()

    def save(self, progress: Progress) -> None:
        """Commit a checkpoint, then ask whether to stop: it would be the place for it."""
        self.heart.progress("saving")
        self.record.status("saving", progress.step)
        probe = probe_logits(self.engine.module, self.run.store, self.world.device)
        commit_checkpoint(self.engine, self.run.checkpoints, progress, probe, self.world, self.run.checkpoint)
        self.heart.progress("training")
        self.record.status("training", progress.step)
        self.stop.ask()

    def leave(self, progress: Progress) -> bool:
        """Say how the run ended; returns whether it was stopped before it was over."""
        over = self.why_over(progress)
        stopped = not over
        self.record.status("stopped" if stopped else "finished", progress.step, self.stop.reason if stopped else over)
        self.world.barrier()  # the first rank to exit may end the others
        self.heart.end()
        return stopped


def _load(run: TrainingRun, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, world: World) -> PreTrainedModel:
    """The model that is trained, with its adapters; what cannot be is said before its weights are read."""
    model, vocab_size, added = run.model, run.store.vocab_size, run.store.added_tokens
    check_packages(model)
    check_quantize(model, run.train.zero.stage, world.device)
    check_weights_fit(model, load_config(model, tokenizer, vocab_size, added), dtype, world.device)
    loaded = load_model(model, tokenizer, vocab_size, added, dtype, run.train.seed)
    if model.lora is not None:
        add_lora(loaded, model.lora, added)
    return loaded


def start_session(run: TrainingRun, world: World, signalled: Callable[[], bool]) -> Session:
    """Load model and tokenizer and start the engine.

    Args:
        signalled: says whether this rank was told to stop.

    Raises:
        UserError: the run cannot be trained as it is configured.
    """
    stop = Stop(run.folder, world, signalled)
    heart = Heart(run.folder, world, run.train.hang_timeout)
    check_validation(run)
    dtype = compute_dtype(run.model, world.device)
    check_train(run.train, dtype, world.size)
    check_device(run.train, dtype, world.device)
    check_liger(run.train, world.device)
    check_trackers(run.track)
    record = RunRecord(run.folder, run.total_steps, writes=world.is_main)
    record.status("loading", 0)
    tokenizer = load_tokenizer(str(run.store.folder / "tokenizer"))
    template = ChatTemplate(template_of(tokenizer), tokenizer.special_tokens_map, run.template_date)
    loaded = _load(run, tokenizer, dtype, world)
    attention = choose_attention(run.model.attention, loaded.config, world.device)
    check_heads(loaded.config, attention, run.train.sequence_parallel)
    use_liger(loaded, run.train)
    model = PackedCausalLM(loaded, attention, run.train.neftune_alpha)
    check_length(model.model.config, run.plan.settings.max_length)
    alone = run.plan.settings.packing == "none" and run.train.packs_per_micro_batch == 1
    check_documents_are_apart(model.to(world.device), world.device, alone)
    forget_activations(loaded, run.train)
    compile_layers(loaded, run.train)
    shapes = model_hash(model)  # before ZeRO-3 splits them
    engine = start_engine(model, run.train, dtype, world)
    torch.manual_seed(run.train.seed + world.rank)  # ranks with other documents have other dropout and noise
    group = join_sequence_group(world, run.train.sequence_parallel)
    return Session(run, world, engine, tokenizer, template, record, shapes, group, stop, heart)


def check_validation(run: TrainingRun) -> None:
    """What decides by the validation loss needs one.

    Raises:
        UserError: the plan holds no documents out.
    """
    for name, asked in (
        ("evaluate.early_stopping", run.evaluate.early_stopping is not None),
        ("checkpoint.keep_best", run.checkpoint.keep_best),
    ):
        if asked and not len(run.plan.validation):
            raise UserError(f"{name} needs validation documents, and the plan has none; set data.validation")
