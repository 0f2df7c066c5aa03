"""Everything besides the store that decides a plan."""

from dataclasses import dataclass, field
from typing import Any

from data_tools.balance import ATTENTION_COST
from data_tools.config import DataConfig


@dataclass(frozen=True)
class SourceShare:
    """What training takes of one source."""

    weight: float = 1.0
    """How often; a fraction below 1."""
    max_rows: int | None = None
    """Documents at most, repeats included."""
    max_tokens: int | None = None
    """Tokens at most, repeats included."""


@dataclass(frozen=True)
class PlanSettings:
    """The settings of a plan; `data_tools.config` says what those of the run's YAML mean."""

    max_length: int
    too_long: str
    validation_fraction: float
    packs_per_step: int
    seed: int
    validation_count: int | None = None
    sources: list[SourceShare] = field(default_factory=list)
    """One per item of `data.sources`; empty: everything once."""
    weights_by: str = "rows"
    deduplicate: bool = False
    packing: str = "best_fit"
    attention_cost: float = ATTENTION_COST
    """What attention costs beside the rest of the model (`data_tools.balance`)."""

    @classmethod
    def of(
        cls, data: DataConfig, packs_per_step: int, seed: int, attention_cost: float = ATTENTION_COST
    ) -> "PlanSettings":
        """Collect the settings from the sections of a run."""
        return cls(
            max_length=data.max_length,
            too_long=data.too_long,
            validation_fraction=data.validation.share,
            validation_count=data.validation.count,
            packs_per_step=packs_per_step,
            seed=seed,
            sources=[SourceShare(source.weight, source.max_rows, source.max_tokens) for source in data.sources],
            weights_by=data.weights_by,
            deduplicate=data.deduplicate,
            packing=data.packing,
            attention_cost=attention_cost,
        )

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> "PlanSettings":
        """What `dataclasses.asdict` made of settings."""
        return cls(**{**values, "sources": [SourceShare(**share) for share in values["sources"]]})
