"""Metrics go to trackers as well, where `track` names some. None of them can stop training.

Each of the functions starts one tracker and returns what sends it a line. They send from threads of their own (and end
the run in a hook of the interpreter's exit), so the loop never waits for a network.
"""

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from data_tools.errors import UserError
from sft.run import TrainingRun

PROJECT = "shardtune"
"""What trackers that have projects or experiments file runs under, unless their own settings say otherwise."""

Send = Callable[[int, Mapping[str, float]], None]
"""Takes a step and its metrics."""


@dataclass(frozen=True)
class Tracker:
    """A tracker that was started."""

    id: str
    """What it calls the run: a resumed run goes on under it."""
    send: Send


def check_trackers(names: Sequence[str]) -> None:
    """A tracker that is not installed is said before anything is trained.

    Raises:
        UserError: its package is missing, or it has nowhere to write.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"track: {name} is not installed; pip install {name}, or leave it out of track")
        if name == "mlflow" and importlib.util.find_spec("sqlalchemy") is None and not _mlflow_has_place():
            raise UserError(
                "track: mlflow-skinny has no database; set MLFLOW_TRACKING_URI to a server, or pip install mlflow"
            )


def _mlflow_has_place() -> bool:
    import mlflow

    return bool(mlflow.is_tracking_uri_set())


class Trackers:
    """The trackers of a run, on the rank that writes.

    Args:
        ids: what trackers called this run when it was started; those it has not are new.
        step: the run goes on after it: what was sent of later steps is done again.
    """

    def __init__(self, names: Sequence[str], run: TrainingRun, ids: Mapping[str, str], step: int) -> None:
        self._started: dict[str, Tracker] = {}
        self.ids = dict(ids)
        for name in names:
            with _never_stopping(name):
                self._started[name] = _START[name](run, ids.get(name), step)
                self.ids[name] = self._started[name].id

    def send(self, step: int, values: Mapping[str, float]) -> None:
        """Send a line to all; one that fails gets no more."""
        for name in list(self._started):
            tracker = self._started.pop(name)
            with _never_stopping(name):
                tracker.send(step, values)
                self._started[name] = tracker


@contextmanager
def _never_stopping(name: str) -> Iterator[None]:
    """Whatever a tracker or its network does wrong is said in one line, and the run goes on."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"track: {name} fails and gets nothing more; metrics.jsonl has everything ({reason})", flush=True)


def _wandb(run: TrainingRun, known: str | None, step: int) -> Tracker:
    """Weights & Biases, with its own settings (WANDB_MODE, WANDB_PROJECT, …); offline where there is no key."""
    import wandb

    mode = wandb.setup().settings.mode
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        mode = "offline"
        print(f"track: wandb has no API key; it writes to {run.folder / 'wandb'}, for `wandb sync`", flush=True)
    started = wandb.init(
        project=wandb.setup().settings.project or PROJECT,
        name=run.folder.name,
        id=known,
        resume="allow",
        dir=run.folder,
        config=_configuration(run),
        mode=mode,
        settings=wandb.Settings(console="off", init_timeout=60, finish_timeout=60),
    )
    # Not wandb's own step, which never goes back: a resumed run does the steps since its checkpoint again.
    started.define_metric("*", step_metric="step")
    return Tracker(started.id, lambda step, values: started.log({"step": step, **values}))


def _trackio(run: TrainingRun, known: str | None, step: int) -> Tracker:
    """trackio, in its own folder (TRACKIO_DIR); `trackio show` looks at it."""
    import trackio

    name = known or run.folder.name
    resume = "allow" if known else "never"
    started = trackio.init(project=PROJECT, name=name, resume=resume, config=_configuration(run), embed=False)
    return Tracker(started.name, lambda step, values: started.log(dict(values), step=step))


def _tensorboard(run: TrainingRun, known: str | None, step: int) -> Tracker:
    """TensorBoard's files in the run's folder; what was written of steps that are done again is hidden."""
    from torch.utils.tensorboard.writer import SummaryWriter

    folder = run.folder / "tensorboard"
    writer = SummaryWriter(str(folder), purge_step=step + 1 if known else None)
    if not known:
        writer.add_text("run.yaml", f"```yaml\n{yaml.safe_dump(_configuration(run), sort_keys=False)}```")

    def send(step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return Tracker(folder.name, send)


def _mlflow(run: TrainingRun, known: str | None, step: int) -> Tracker:
    """MLflow, at MLFLOW_TRACKING_URI, or in a database in the run's folder."""
    import mlflow
    from mlflow.environment_variables import MLFLOW_EXPERIMENT_ID, MLFLOW_EXPERIMENT_NAME

    if not _mlflow_has_place():
        mlflow.set_tracking_uri(f"sqlite:///{run.folder.absolute() / 'mlflow.db'}")
    if known is None and not MLFLOW_EXPERIMENT_ID.get() and not MLFLOW_EXPERIMENT_NAME.get():
        mlflow.set_experiment(PROJECT)
    started = mlflow.start_run(run_id=known, run_name=None if known else run.folder.name)
    if known is None:
        mlflow.log_params(_flat(_configuration(run)))

    def send(step: int, values: Mapping[str, float]) -> None:
        allowed = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in values.items()}
        mlflow.log_metrics(allowed, step=step, synchronous=False)

    return Tracker(started.info.run_id, send)


_START: dict[str, Callable[[TrainingRun, str | None, int], Tracker]] = {
    "wandb": _wandb,
    "trackio": _trackio,
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
}


def _configuration(run: TrainingRun) -> dict[str, Any]:
    """The run's settings and the facts of its plan, as plain values."""
    sections: dict[str, Any] = yaml.safe_load((run.folder / "run.yaml").read_text(encoding="utf-8"))
    return {**sections, "plan": {"hash": run.plan.hash, "packs": len(run.plan.train), "fill": run.plan.fill}}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested sections as `section.key`; texts as long as MLflow takes them."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)[:6000]
    return flat
