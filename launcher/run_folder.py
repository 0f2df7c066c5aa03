"""What a run's folder says about the run, for the commands that start and follow it."""

import json
import os
import socket
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from data_tools.changes import shortened
from data_tools.errors import UserError
from data_tools.mirror import open_store
from data_tools.plan import PLAN, PlanSettings, read_plan
from launcher.config import RUN_FILE, RunConfig, load_run
from sft.record import STATUS, read_metrics

_MAY_CHANGE = {
    *(("train", key) for key in ("max_steps", "epochs", "log_every", "hang_timeout")),
    *(("train", key) for key in ("zero", "packs_per_micro_batch", "sequence_parallel", "activation_checkpointing")),
}
"""What a resumed run may set anew besides `evaluate` and `checkpoint`: how long it goes on, and how steps are shared
out and kept in memory. Steps already done stay what they were; those to come have the same documents and loss."""


def check_may_start(config: RunConfig, resuming: bool) -> None:
    """A run never writes over another, and only goes on as what it was.

    Raises:
        UserError: the folder holds checkpoints of this name, or of another configuration, or is being trained by
            another machine.
    """
    _check_not_trained_elsewhere(config.folder)
    newest = newest_checkpoint(config.folder)
    if newest is not None and not resuming:
        raise UserError(
            f"{config.folder} already has {newest.name}; go on with --resume, or start another with name=NAME"
        )
    if newest is None and config.checkpoint.copy_to is not None:
        _check_copies(config, resuming)
    check_same_run(config)


def _check_not_trained_elsewhere(folder: Path) -> None:
    """On this machine a lock tells; a job on other nodes is seen by the signs of life of its ranks."""
    if not folder.exists() or read_status(folder).get("phase") in ("finished", "stopped"):
        return
    from sft import heartbeat

    with tempfile.TemporaryFile(dir=folder) as probe:
        now = os.fstat(probe.fileno()).st_mtime  # by the clock that stamps the signs of life
    for path in sorted((folder / heartbeat.FOLDER).glob("rank-*.json")):
        age, host = now - path.stat().st_mtime, json.loads(path.read_text("utf-8"))["host"]
        if host != socket.gethostname() and age < heartbeat.QUIET:
            raise UserError(
                f"{folder} is being trained on {host}, or was {age:.0f} s ago; shardtune status tells of its jobs; "
                f"if they were killed, try again in {heartbeat.QUIET - age:.0f} s"
            )


def _check_copies(config: RunConfig, resuming: bool) -> None:
    """A run whose checkpoints are only elsewhere is as good as one that has them here."""
    from sft.copies import Copies

    copies = Copies(config.folder, config.checkpoint)
    names = copies.names()
    if names and not resuming:
        raise UserError(
            f"{copies.location} already has {names[-1]}; go on with --resume, or start another with name=NAME"
        )
    if names:
        before = yaml.safe_load(copies.run_file())
        # Another machine may have the model elsewhere; whether it is the same is seen when the checkpoint is loaded.
        _compare_settings(copies.location, before, config, besides=("model", "path"))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest committed checkpoint of a run."""
    found = (record.parent for record in folder.glob("checkpoints/step-*/commit.json"))
    return max((path for path in found if not path.suffix), default=None)  # others are not whole, or damaged


def check_same_run(config: RunConfig) -> None:
    """What a run with checkpoints was made with stays as it is.

    Raises:
        UserError: the configuration says otherwise.
    """
    if newest_checkpoint(config.folder) is None:
        return
    if not (config.folder / RUN_FILE).exists():
        raise UserError(f"{config.folder} has checkpoints, but lacks {RUN_FILE}; use another run name")
    if (config.folder / "plan" / PLAN).exists():  # without it the plan is made again, and compared by the checkpoint
        _check_plan(config)
    before = load_run(str(config.folder / RUN_FILE), [])
    if before.model.path == config.model.path and before.model.revision != config.model.revision:
        from launcher.pins import pinned  # which looks into run folders itself

        before, config = pinned(before), pinned(config)  # each may be asked for, or what it was fetched as
    _compare_settings(config.folder, before.model_dump(mode="json"), config)


def _compare_settings(
    where: object, before: dict[str, Any], config: RunConfig, besides: tuple[str, str] = ("", "")
) -> None:
    now = config.model_dump(mode="json")
    for section in ("model", "train"):
        for key, value in now[section].items():
            old = before[section].get(key)
            if (section, key) not in {*_MAY_CHANGE, besides} and not _same(old, value):
                raise UserError(
                    f"{where} was started with {section}.{key}={shortened(old)}, not {shortened(value)}; "
                    f"resume with the same, or start another run with name=NAME"
                )


def _check_plan(config: RunConfig) -> None:
    """A checkpoint goes on with the plan that it was made with."""
    facts = read_plan(config.folder / "plan")
    now = asdict(PlanSettings.of(config.data, config.train.packs_per_step, config.train.seed))
    for key, value in now.items():
        if key != "attention_cost" and facts["settings"].get(key) != value:
            old, new = shortened(facts["settings"].get(key)), shortened(value)
            raise UserError(
                f"{config.folder} was planned with {_key_of(key)}={old}, not {new}; "
                f"resume with the same, or start another run with name=NAME"
            )
    if facts["store"] != open_store(config.store).fingerprint:
        raise UserError(f"{config.folder} was trained on another token store than {config.store}; use its own")


def _key_of(setting: str) -> str:
    """The key of a run's YAML that a setting of a plan comes from."""
    if setting.startswith("validation_"):
        return f"data.validation.{setting.removeprefix('validation_')}"
    return f"{'train' if setting in ('packs_per_step', 'seed') else 'data'}.{setting}"


def planned_attention_cost(config: RunConfig) -> float | None:
    """What a run with checkpoints was planned with: it goes on with the same steps where the model is not at hand."""
    if newest_checkpoint(config.folder) is None or not (config.folder / "plan" / PLAN).exists():
        return None
    return float(read_plan(config.folder / "plan")["settings"]["attention_cost"])


def _same(before: Any, now: Any) -> bool:
    return before == now or (isinstance(now, str) and before == str(Path(now).absolute()))


SWEEP = Path("jobs") / "sweep.json"
"""In the folder of a run of a sweep, it says which sweep that is."""


def sweep_of(folder: Path) -> Path | None:
    """The folder of the sweep that a run was launched in; None: in none."""
    path = folder / SWEEP
    return Path(json.loads(path.read_text("utf-8"))["sweep"]) if path.exists() else None


def read_status(folder: Path) -> dict[str, Any]:
    """What the training job last said of itself; empty when it has not yet."""
    path = folder / STATUS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def summary(folder: Path) -> dict[str, Any]:
    """Where a run stands: step, and the newest training and validation loss (None before the first)."""
    lines = read_metrics(folder)
    return {
        "step": max((line["step"] for line in lines), default=0),
        "loss": next((line["loss"] for line in reversed(lines) if "loss" in line), None),
        "validation_loss": next(
            (line["validation_loss"] for line in reversed(lines) if "validation_loss" in line), None
        ),
    }
