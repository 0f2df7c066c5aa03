"""The report of a run: loss curves as PNG, everything else around them as one HTML file without outside references."""

import base64
import json
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

from sft.record import read_metrics
from sft.run import TrainingRun

matplotlib.use("Agg")

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_BLUE, _ORANGE, _GREY = "#3366cc", "#e07b00", "#888888"


def write_report(run: TrainingRun) -> Path:
    """Write `report.html` and `loss.png` into the run's folder and return the report's path."""
    lines = read_metrics(run.folder)
    picture = run.folder / "loss.png"
    draw_loss(run.folder.name, lines, picture)
    samples = {
        int(path.stem.removeprefix("step-")): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((run.folder / "samples").glob("step-*.json"))
    }
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=run.folder.name,
        picture=base64.b64encode(picture.read_bytes()).decode(),
        facts=_facts(run, lines),
        sources=run.store.manifest["sources"],
        totals=run.store.manifest["totals"],
        samples=samples,
        configuration=(run.folder / "run.yaml").read_text(encoding="utf-8"),
    )
    report = run.folder / "report.html"
    report.write_text(html, encoding="utf-8")
    return report


def _facts(run: TrainingRun, lines: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The headline figures, as (name, value)."""
    training = [line for line in lines if "loss" in line]
    validation = [line["validation_loss"] for line in lines if "validation_loss" in line]
    facts = []
    if validation:
        facts.append(("validation loss", f"{validation[0]:.3f} → {validation[-1]:.3f}"))
    if training:
        speeds = sorted(line["tokens_per_second"] for line in training)
        facts += [
            ("training loss", f"{training[0]['loss']:.3f} → {training[-1]['loss']:.3f}"),
            ("steps", f"{training[-1]['step']:,} of {run.total_steps:,}"),
            ("tokens trained on", f"{training[-1]['num_tokens']:,}"),
            ("tokens per second", f"{speeds[len(speeds) // 2]:,.0f} (median)"),
        ]
    return [*facts, ("packs", f"{len(run.plan.train):,}, {run.plan.fill:.1%} full")]


def draw_loss(name: str, lines: list[dict[str, Any]], path: Path) -> None:
    """Training and validation loss over steps, the learning rate below."""
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "validation_loss" in line]
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    steps = [line["step"] for line in training]
    above.plot(steps, [line["loss"] for line in training], color=_BLUE, linewidth=1.2, label="training")
    above.plot(
        [line["step"] for line in validation],
        [line["validation_loss"] for line in validation],
        color=_ORANGE,
        marker="o",
        label="validation",
    )
    above.set_title(f"{name}: loss on trained tokens")
    above.set_ylabel("cross-entropy (nats)")
    above.grid(alpha=0.3)
    above.legend()
    below.plot(steps, [line["learning_rate"] for line in training], color=_GREY)
    below.set_ylabel("learning rate")
    below.set_xlabel("optimizer step")
    below.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
