"""Settings of the data half: where conversations come from and what decides their tokens."""

import os
import re
from datetime import date
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")


def expand_environment(text: str) -> str:
    """Replace `${NAME}`, `${NAME:-default}` and a leading `~`; a name that is not set needs a default.

    >>> os.environ.pop("SHARDTUNE_DOCTEST", None)
    >>> expand_environment("${SHARDTUNE_DOCTEST:-data}/chats.jsonl")
    'data/chats.jsonl'
    """

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        found = os.environ.get(name) or default
        if found is None:
            raise ValueError(f"the environment variable {name} is not set; set it or write ${{{name}:-default}}")
        return found

    return os.path.expanduser(_VARIABLE.sub(value, text))  # noqa: PTH111 -- a glob or a URI must stay as it is


Location = Annotated[str, AfterValidator(expand_environment)]
"""A file, folder, glob or hub id; may use `${NAME:-default}`."""


class Section(BaseModel):
    """A part of the run's YAML: unknown keys are errors and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class SourceConfig(Section):
    """One source of conversations: a file or folder (`path`), or an embedded sample (`sample`)."""

    path: Location | None = None
    """A JSON, JSONL, CSV, Parquet or Arrow file, a glob of them, or a folder in any layout that `datasets` reads."""
    config: str | None = None
    """The data set's configuration, when the folder has several (SmolTalk2: `SFT`)."""
    split: str | None = None
    """The split to read, or `all` for every split, each as a source of its own."""
    sample: Literal["python_docs"] | None = None
    """Chats built from the documentation of Python's standard library, present on every machine."""

    @model_validator(mode="after")
    def _one_origin(self) -> "SourceConfig":
        if (self.path is None) == (self.sample is None):
            raise ValueError("give either `path` or `sample`")
        return self


class TokenizerTraining(Section):
    """Train a byte-level BPE tokenizer with a ChatML template on the sources, instead of loading one."""

    vocab_size: int = Field(4096, ge=300)
    """Entries of the vocabulary, special tokens included."""


class ValidationConfig(Section):
    """The documents held out for evaluation, chosen by the hash of their tokens: never random, never in training."""

    fraction: float = Field(0.01, ge=0, lt=1)
    """The expected share of documents."""


class DataConfig(Section):
    """What becomes tokens, and how."""

    sources: list[SourceConfig] = Field(min_length=1)
    tokenizer: Location | TokenizerTraining
    """A folder or hub id, or `{vocab_size: …}` to train a small one."""
    store: Location | None = None
    """Where the token store goes; by default `tokens` below the run's folder."""
    chat_template: Location | None = None
    """A Jinja file; by default the tokenizer's own template."""
    template_date: date = date(2025, 1, 1)
    """What `strftime_now` answers in templates: tokens must not depend on the day they are made."""
    train_on: Literal["assistant"] = "assistant"
    """The messages that are learnt."""
    max_length: int = Field(2048, ge=8)
    """Tokens in one packed row, and the longest document that is trained on."""
    too_long: Literal["drop", "error"] = "drop"
    """What happens to documents of more than `max_length` tokens."""
    validation: ValidationConfig = ValidationConfig()
    actors: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Ray actors that tokenize; 0 works in this process; auto: 0 for a few thousand rows, else one per CPU."""
    rows_per_shard: int = Field(2048, ge=1)
    """Rows of a source in one unit of work; each unit becomes one shard."""

    def asked(self) -> dict[str, Any]:
        """What decides the tokens, as it was asked for: without folders, which differ from machine to machine."""
        values = self.model_dump(
            mode="json", include={"sources", "tokenizer", "chat_template", "template_date", "train_on"}
        )
        for place in (values, *values["sources"]):
            for key in ("path", "tokenizer", "chat_template"):
                if isinstance(place.get(key), str):
                    place[key] = PurePath(place[key]).name
        return values
