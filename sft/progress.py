"""How far a run is, and the checkpoints that say so."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.errors import UserError
from data_tools.plan import StepSize
from sft.digests import COMMIT


@dataclass(frozen=True)
class Progress:
    """How far a run is; with the plan it says everything about the data that follows."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens seen."""
    trained_tokens: int
    """Labels seen."""
    plan_hash: str
    model_hash: str
    """Of the names and shapes of the model's parameters."""
    zero_stage: int
    ranks: int
    evaluated: bool
    """Whether an evaluation was made after this very step."""
    validations: tuple[tuple[int, float], ...]
    """Step and validation loss of all evaluations so far."""
    trackers: dict[str, str]
    """What each tracker calls the run."""

    def after(self, size: StepSize) -> "Progress":
        """One optimizer step further."""
        return replace(
            self,
            step=self.step + 1,
            tokens=self.tokens + size.tokens,
            trained_tokens=self.trained_tokens + size.trained_tokens,
            evaluated=False,
        )


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is committed."""
    return folder / f"step-{step:08d}"


def committed_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"step-*/{COMMIT}") if path.parent.suffix == "")


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation loss (the first of equal ones) among those that were evaluated."""
    records = {path.name: (path / COMMIT).read_bytes() for path in committed_checkpoints(folder)}
    best = best_of(records)
    return None if best is None else folder / best


def best_of(records: Mapping[str, bytes]) -> str | None:
    """Of the commit records of checkpoints by their names, the name that has the lowest validation loss."""
    evaluated = []
    for name, record in records.items():
        try:
            progress = parse_record(record, name)
        except UserError:
            continue  # a damaged one is never the best
        if progress.evaluated and progress.validations:
            evaluated.append((progress.validations[-1][1], progress.step, name))
    return min((found for found in evaluated if found[0] == found[0]), default=(0, 0, None))[-1]


def read_progress(checkpoint: Path) -> Progress:
    """What the commit record says of the run.

    Raises:
        UserError: another version wrote it, or it is damaged.
    """
    return parse_record((checkpoint / COMMIT).read_bytes(), str(checkpoint))


def parse_record(record: bytes, checkpoint: str) -> Progress:
    """`read_progress` of a record that was read already."""
    try:
        values = json.loads(record)
        found = {name: values[name] for name in Progress.__dataclass_fields__ if name in values}
        validations = tuple((step, loss) for step, loss in found.get("validations", ()))
    except (ValueError, TypeError):
        raise UserError(f"{checkpoint}/{COMMIT} is not what was written; delete that checkpoint") from None
    if missing := [name for name in Progress.__dataclass_fields__ if name not in found]:
        raise UserError(f"{checkpoint}/{COMMIT} has no {missing[0]}: another version wrote it; use another run name")
    return Progress(**{**found, "validations": validations})
