"""The parts of a run's folder that training, export and generation use."""

import math
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import yaml

from data_tools.errors import UserError
from data_tools.mirror import open_store
from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from sft.config import TrainConfig
from sft.config_model import ModelConfig
from sft.config_watch import CheckpointConfig, EvaluateConfig, TrackConfig


@dataclass(frozen=True)
class TrainingRun:
    """A run folder, opened: `run.yaml`, the token store it names, and `plan/`."""

    folder: Path
    store: TokenStore
    plan: PackPlan
    template_date: date
    model: ModelConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    checkpoint: CheckpointConfig
    track: TrackConfig

    @classmethod
    def open(cls, folder: Path) -> "TrainingRun":
        """Read a run folder.

        Raises:
            UserError: something is missing, or plan and store do not belong together.
        """
        path = folder / "run.yaml"
        if not path.exists():
            raise UserError(f"{folder} is not a run: it has no run.yaml; start one with `shardtune train CONFIG`")
        sections = yaml.safe_load(path.read_text(encoding="utf-8"))
        run = cls(
            folder=folder,
            store=open_store(sections["data"]["store"] or folder / "tokens"),
            plan=PackPlan(folder / "plan"),
            template_date=date.fromisoformat(str(sections["data"]["template_date"])),
            model=ModelConfig(**sections["model"]),
            train=TrainConfig(**sections["train"]),
            evaluate=EvaluateConfig(**sections["evaluate"]),
            checkpoint=CheckpointConfig(**sections["checkpoint"]),
            track=tuple(sections.get("track", ())),
        )
        if run.plan.facts["store"] != run.store.fingerprint:
            raise UserError(
                f"{folder / 'plan'} was planned for another token store; run `shardtune plan {folder}` again"
            )
        return run

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints are committed."""
        return self.folder / "checkpoints"

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.train.max_steps or math.ceil(self.train.epochs * self.plan.steps_per_epoch)
