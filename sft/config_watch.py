"""Settings of what is looked at and kept while a run trains: evaluations, checkpoints, trackers."""

from typing import Literal

from pydantic import Field, model_validator

from data_tools.config import Location, Section

TrackConfig = tuple[Literal["wandb", "trackio", "tensorboard", "mlflow"], ...]
"""Where metrics go besides metrics.jsonl."""


class EarlyStoppingConfig(Section):
    """When more steps are no longer worth their time."""

    patience: int = Field(5, ge=1)
    """Evaluations in a row whose validation loss is no new best; after so many the run ends."""
    min_delta: float = Field(0.0, ge=0)
    """A new best is lower by more than this, in nats."""


class EvaluateConfig(Section):
    """What is looked at besides the training loss: before the first step, at intervals, and after the last."""

    every: int | None = Field(None, ge=1)
    """Steps between evaluations; by default only the first and the last."""
    samples: tuple[str, ...] = ("What can you help me with?",)
    """Prompts that are answered at each evaluation."""
    max_new_tokens: int = Field(64, ge=1)
    """The longest answer."""
    early_stopping: EarlyStoppingConfig | None = None
    """The run ends once the validation loss falls no more; by default it goes through all its steps."""
    on_start: bool = True
    """Whether the untrained model is looked at as well."""

    @model_validator(mode="after")
    def _early_stopping_can(self) -> "EvaluateConfig":
        if self.early_stopping and self.every is None:
            raise ValueError("early_stopping needs evaluations on the way; set evaluate.every")
        return self


class CheckpointConfig(Section):
    """When the state of the run is committed."""

    every: int = Field(200, ge=1)
    """Steps between checkpoints; the first and the last step always give one."""
    keep_last: int = Field(2, ge=1)
    """Older ones are deleted."""
    keep_best: bool = False
    """Whether the one with the lowest validation loss is kept besides; every evaluation that finds a new lowest is then
    followed by a checkpoint."""
    copy_to: Location | None = Field(None, examples=["s3://bucket/runs"])
    """A URI or folder for copies of checkpoints, which are made while training goes on; each run has a folder of its
    name there. `--resume` takes the newest, wherever it is."""
    node_local: bool = False
    """Whether the run's folder is another one on each node, on a disk of its own: a node keeps there what its ranks
    wrote, and what counts is what `copy_to` has."""

    @model_validator(mode="after")
    def _node_local_copies(self) -> "CheckpointConfig":
        if self.node_local and self.copy_to is None:
            raise ValueError("node_local needs a place where the nodes' parts come together; set checkpoint.copy_to")
        return self
