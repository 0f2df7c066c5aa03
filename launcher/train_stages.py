"""The stages from training on, one function each: configuration in, facts out. Each imports its work when it runs."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from data_tools.store import write_json
from launcher.config import RunConfig
from launcher.pins import require_model
from launcher.run_folder import check_may_start, read_status, summary
from launcher.stages import plan_stage
from sft.record import STATUS


class RunStopped(Exception):
    """Training was asked to stop before it was over; `facts` say where."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(
            f"stopped by {facts['reason']} after {facts['step']:,} steps; "
            f"`shardtune train {facts['run']} --resume` goes on from there"
        )
        self.facts = facts


def train_stage(config: RunConfig, console: Console, ranks: int, resuming: bool) -> dict[str, Any]:
    """Token store → checkpoints and metrics; plans first, which takes no time."""
    require_model(config)
    check_may_start(config, resuming)
    plan_stage(config, console, ranks, everything=False)
    return train_planned(config, console, ranks, resuming)


def train_planned(config: RunConfig, console: Console, ranks: int, resuming: bool) -> dict[str, Any]:
    """Pack plan → checkpoints and metrics.

    Raises:
        RunStopped: it was asked to stop.
    """
    from launcher.backends.local import run_ranks
    from launcher.follow import following

    started = time.perf_counter()
    (config.folder / STATUS).unlink(missing_ok=True)
    with following(config.folder, ranks, console) as look:
        stopped = run_ranks(config.folder, ranks, resuming, while_running=look)
    status = read_status(config.folder)
    facts = {
        "run": str(config.folder),
        **summary(config.folder),
        "reason": status["reason"],
        "warning": status["warning"],
        "seconds": round(time.perf_counter() - started, 2),
    }
    if status["warning"]:
        console.print(f"warning: {status['warning']}", style="yellow", markup=False, highlight=False)
    if stopped:
        raise RunStopped(facts)
    validation = facts["validation_loss"]
    if facts["step"] < status["steps"]:
        console.print(f"stopped early: {facts['reason']}", highlight=False)
    console.print(
        f"[green]trained[/] {facts['step']:,} steps in {facts['seconds']:.0f} s: loss {facts['loss']:.3f}"
        + (f", validation loss {validation:.3f}" if validation is not None else "")
        + f" → {config.folder}"
    )
    return facts


def eval_stage(
    config: RunConfig,
    console: Console,
    model: str | None,
    best: bool,
    step: int | None,
    answers: int,
    tasks: list[str],
) -> dict[str, Any]:
    """Checkpoint or model → metrics on the held-out documents, kept in `evals/`."""
    from sft.eval import evaluate
    from sft.run import TrainingRun

    run = replace(TrainingRun.open(config.folder), evaluate=config.evaluate)
    with console.status("evaluating"):
        found = evaluate(run, model, best, step, answers, tasks)
    file = config.folder / "evals" / f"{Path(found['model']).name}.json"
    file.parent.mkdir(exist_ok=True)
    write_json(file, found)
    for name, value in found.items():
        if isinstance(value, float):
            console.print(f"  {name:<32} {value:.4f}", markup=False, highlight=False)
    if "scores" in found:
        scores = found["scores"]
        console.print(
            f"  BLEU {scores['bleu']:.1f}, ROUGE-L {scores['rouge_l']:.3f} of {scores['answers']} answers, of which "
            f"{scores['ended']} ended within {config.evaluate.max_new_tokens} tokens ({scores['signature']})",
            markup=False,
            highlight=False,
        )
    for task, results in found.get("lm_eval", {}).items():
        numbers = (f"{name} {value:.4f}" for name, value in results.items() if isinstance(value, float))
        console.print(f"  {task}: {', '.join(numbers)}", markup=False, highlight=False)
    console.print(f"[green]evaluated[/] {found['model']} → {file}")
    return found


def export_stage(config: RunConfig, console: Console, best: bool = False, adapter: bool = False) -> dict[str, Any]:
    """Newest checkpoint, or the best → Hugging Face folder, of the model or of its adapter alone."""
    from sft.export import export_model
    from sft.run import TrainingRun

    with console.status("exporting and comparing with the trained model"):
        model = export_model(TrainingRun.open(config.folder), best, adapter)
    console.print(f"[green]exported[/] → {model} (reloaded, its logits are those of the trained model)")
    return {"adapter" if adapter else "model": str(model)}


def generate_stage(config: RunConfig, console: Console, prompts: list[str]) -> dict[str, Any]:
    """Answers of the exported model."""
    from sft.generate import generate_answers

    with console.status("answering"):
        answers = generate_answers(
            config.folder / "model",
            prompts or config.evaluate.samples,
            config.evaluate.max_new_tokens,
            config.data.template_date,
            config.model.trust_remote_code,
        )
    for sample in answers:
        console.print(sample["prompt"], style="bold", markup=False)
        console.print(sample["answer"] or "(nothing)", markup=False, highlight=False)
    return {"answers": answers}


def report_stage(config: RunConfig, console: Console) -> dict[str, Any]:
    """Metrics and samples → report.html and loss.png."""
    from sft.insight.report import write_report
    from sft.run import TrainingRun

    report = write_report(TrainingRun.open(config.folder))
    console.print(f"[green]reported[/] → {report}")
    return {"report": str(report)}
