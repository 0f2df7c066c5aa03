"""Settings of the model."""

from typing import Any, Literal

from pydantic import model_validator

from data_tools.config import Location, Section


class ModelConfig(Section):
    """Which model is trained: an existing one (`path`), or random weights (`config`)."""

    path: Location | None = None
    """A folder or hub id of a causal language model."""
    revision: str | None = None
    """A commit, tag or branch of the model on the hub."""
    config: dict[str, Any] | None = None
    """`architecture` (llama, qwen3, …) and the keys of its transformers configuration, for random weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What forward and backward compute in; auto: bfloat16 on GPUs that have it, else float32."""

    attention: Literal["auto", "packed", "flash_attention_2", "sdpa", "flex_attention"] = "auto"
    """How documents of a pack are kept apart; auto: `packed`, or `flex_attention` on a GPU where scores are capped."""

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if (self.path is None) == (self.config is None):
            raise ValueError("give either `path` or `config`")
        if self.config is not None and "architecture" not in self.config:
            raise ValueError("`config` needs `architecture`, for example `architecture: llama`")
        return self
