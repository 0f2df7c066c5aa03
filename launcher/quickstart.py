"""Everything once, on data that every machine has: from documentation to a language model that talks like it."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from launcher import stages
from launcher.config import RunConfig

RECIPE = str(Path(__file__).parent.parent / "configs" / "recipes" / "quickstart.yaml")


def quickstart(config: RunConfig, console: Console, ranks: int) -> dict[str, Any]:
    """Run every stage and show an answer before and after; a run of an earlier quickstart is replaced."""
    started = time.perf_counter()
    for leftover in ("checkpoints", "samples", "model", "logs"):
        shutil.rmtree(config.folder / leftover, ignore_errors=True)
    facts: dict[str, Any] = {
        "prepare": stages.prepare_stage(config, console),
        "train": stages.train_stage(config, console, ranks, resuming=False),
    }
    facts["plan"] = stages.plan_stage(config, Console(quiet=True), ranks)
    facts["export"] = stages.export_stage(config, console)
    facts["generate"] = stages.generate_stage(config, Console(quiet=True), [])
    facts["report"] = stages.report_stage(config, Console(quiet=True))
    facts |= {"run": str(config.folder), "model": facts["export"]["model"]}
    _last_screen(config, facts, console, time.perf_counter() - started)
    return facts | {"report": facts["report"]["report"]}


def _last_screen(config: RunConfig, facts: dict[str, Any], console: Console, seconds: float) -> None:
    before = json.loads((config.folder / "samples" / "step-00000000.json").read_text(encoding="utf-8"))[0]
    after = facts["generate"]["answers"][0]
    console.print(
        Panel(_shown(before["answer"]), title="before training: " + escape(before["prompt"]), title_align="left")
    )
    console.print(
        Panel(_shown(after["answer"]), title="after training: " + escape(after["prompt"]), title_align="left")
    )
    folder = config.folder
    console.print(
        f"[bold green]Done in {seconds:.0f} s.[/] What was made:\n"
        f"  {config.store}/  {facts['prepare']['tokens']:,} tokens of {facts['prepare']['rows_out']:,} chats\n"
        f"  {folder}/model/  the model, for transformers, vLLM, …\n"
        f"  {folder}/report.html  curves, answers, data\n"
        f"  {folder}/metrics.jsonl  every step\n"
        f"Try next:\n"
        f"  shardtune generate {folder} --prompt 'What is `json.loads` for?'\n"
        f"  shardtune train {folder} name=longer train.max_steps=1000\n"
        f"  shardtune prepare my.yaml   # copy {Path(RECIPE)} and name your own data"
    )


def _shown(answer: str) -> str:
    return escape(answer[:600]) if answer else "[dim](nothing)[/]"
