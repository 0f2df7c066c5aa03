"""Settings of the model."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data_tools.config import Location, Section


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685): W x + alpha / rank · B A x, where only A and B are trained."""

    rank: int = Field(16, ge=1)
    """Rows of A and columns of B."""
    alpha: int = Field(32, ge=1)
    """What the adapters count: alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of what goes into A, in training."""
    target: str | list[str] = Field("all-linear", min_length=1)
    """The linear layers that get adapters: all but the output layer, the ends of their names, or a regular expression
    of whole names."""
    embeddings: bool | None = None
    """Train embedding and output layer, too, all of their rows; by default where `data.special_tokens` are new."""
    start_from: Location | None = Field(None, examples=["runs/first/adapter"])
    """A folder with adapters that peft wrote, as `export --adapter` does: they are trained on, in place of new ones."""


class ModelConfig(Section):
    """Which model is trained: an existing one (`path`), or random weights (`config`); neither: none yet."""

    path: Location | None = Field(None, examples=["models/SmolLM2-135M"])
    """A folder or hub id of a causal language model."""
    revision: str | None = Field(None, examples=["main"])
    """A commit, tag or branch of the model on the hub."""
    trust_remote_code: bool = False
    """Run the Python code that lies beside the weights; of the hub only that of a commit, given as `revision`."""
    config: dict[str, Any] | None = Field(None, examples=[{"architecture": "llama"}])
    """`architecture` (llama, qwen3, …) and the keys of its transformers configuration, for random weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What forward and backward compute in; auto: bfloat16 on GPUs that have it, else float32. float16, for GPUs
    without bfloat16, scales the loss, and leaves out steps where the scale was too large."""
    lora: LoraConfig | None = Field(None, examples=[{"rank": 16}])
    """Train low-rank adapters in place of the weights."""
    quantize: Literal["nf4"] | None = None
    """Keep the weights below the adapters in 4 bits (QLoRA, arXiv 2305.14314), by bitsandbytes."""

    attention: Literal["auto", "packed", "flash_attention_2", "sdpa", "flex_attention"] = "auto"
    """How documents of a pack are kept apart; auto: `packed`, or `flex_attention` on a GPU where scores are capped."""

    @property
    def is_given(self) -> bool:
        """Whether there is anything to train: preparing and planning need no model."""
        return self.path is not None or self.config is not None

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if self.path is not None and self.config is not None:
            raise ValueError("give `path` (a model that exists) or `config` (random weights), not both")
        if self.config is not None and "architecture" not in self.config:
            raise ValueError("`config` needs `architecture`, for example `architecture: llama`")
        if self.lora is not None and self.path is None:
            raise ValueError("`lora` trains adapters of a model that knows something; give `path`")
        if self.quantize is not None and self.lora is None:
            raise ValueError("weights in 4 bits cannot be trained, only adapters over them; set lora as well")
        return self

    @model_validator(mode="after")
    def _code_is_known(self) -> "ModelConfig":
        if not self.trust_remote_code:
            return self
        if self.path is None:
            raise ValueError("`trust_remote_code` is for code beside weights; give `path`, or leave it out")
        if not Path(self.path).exists() and re.fullmatch("[0-9a-f]{40}", self.revision or "") is None:
            raise ValueError(
                "`trust_remote_code` runs code of the hub, where branches and tags move; "
                "set `revision` to a commit (40 hexadecimal digits)"
            )
        return self
