"""Everything once, on data that every machine has: from documentation to a language model that talks like it."""

import itertools
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from launcher import stages, train_stages
from launcher.config import RunConfig
from launcher.pins import require_model
from launcher.run_folder import newest_checkpoint

RECIPE = str(Path(__file__).parent.parent / "configs" / "recipes" / "quickstart.yaml")


def quickstart(config: RunConfig, console: Console, ranks: int) -> dict[str, Any]:
    """Run every stage and show an answer before and after; a run that is there already stays as it is."""
    started = time.perf_counter()
    require_model(config)
    config = _with_free_name(config)
    facts: dict[str, Any] = {
        "prepare": stages.prepare_stage(config, console),
        "plan": stages.plan_stage(config, console, ranks),
        "train": train_stages.train_planned(config, console, ranks, resuming=False),
        "export": train_stages.export_stage(config, console, adapter=False),
        "generate": train_stages.generate_stage(config, Console(quiet=True), []),
        **train_stages.report_stage(config, Console(quiet=True)),
    }
    facts |= {"run": str(config.folder), "model": facts["export"]["model"]}
    _last_screen(config, facts, console, time.perf_counter() - started)
    return facts


def _with_free_name(config: RunConfig) -> RunConfig:
    """The first of NAME, NAME-2, NAME-3, … that has no checkpoint."""
    name = config.name
    for number in itertools.count(2):
        if newest_checkpoint(config.folder) is None:
            return config
        config = config.model_copy(update={"name": f"{name}-{number}"})
    raise AssertionError("there is always another number")


def _last_screen(config: RunConfig, facts: dict[str, Any], console: Console, seconds: float) -> None:
    samples = json.loads((config.folder / "samples" / "step-00000000.json").read_text(encoding="utf-8"))
    for when, answers in (("before", samples[:1]), ("after", facts["generate"]["answers"][:1])):
        for sample in answers:
            title = f"{when} training: {escape(sample['prompt'])}"
            console.print(Panel(_shown(sample["answer"]), title=title, title_align="left"))
    folder = config.folder
    command = "shardtune" if shutil.which("shardtune") else str(Path(sys.executable).with_name("shardtune"))
    console.print(
        f"[bold green]Done in {seconds:.0f} s.[/] What was made:\n"
        f"  {config.store}/  {facts['prepare']['tokens']:,} tokens of {facts['prepare']['rows_out']:,} chats\n"
        f"  {folder}/model/  the model, for transformers, vLLM, …\n"
        f"  {folder}/report.html  curves, answers, data\n"
        f"  {folder}/metrics.jsonl  every step\n"
        f"Try next:\n"
        f"  {command} generate {folder} --prompt 'What is `json.loads` for?'\n"
        f"  {command} train {folder} name=longer train.max_steps=1000\n"
        f"  {command} prepare my.yaml   # copy {Path(RECIPE)} and name your own data"
    )


def _shown(answer: str) -> str:
    return escape(answer[:600]) if answer else "[dim](nothing)[/]"
