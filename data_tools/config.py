"""Settings of the data half: where conversations come from and what decides their tokens."""

import difflib
import os
import re
from datetime import date
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from data_tools.files import is_hub_id

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")


def expand_variables(text: str) -> str:
    """Replace `${NAME}` and `${NAME:-default}`; a name that is not set needs a default.

    >>> os.environ.pop("SHARDTUNE_DOCTEST", None)
    >>> expand_variables("${SHARDTUNE_DOCTEST:-data}/chats.jsonl")
    'data/chats.jsonl'
    """

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        found = os.environ.get(name) or default
        if found is None:
            raise ValueError(f"the environment variable {name} is not set; set it or write ${{{name}:-default}}")
        return found

    return _VARIABLE.sub(value, text)


def expand_environment(text: str) -> str:
    """Replace variables (`expand_variables`) and a leading `~`."""
    return os.path.expanduser(expand_variables(text))  # noqa: PTH111 -- a glob or a URI must stay as it is


Location = Annotated[str, AfterValidator(expand_environment)]
"""A file, folder, glob or hub id; may use `${NAME:-default}`."""


class Section(BaseModel):
    """A part of the run's YAML: unknown keys are errors and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


FIELDS = (
    *("messages", "system", "user", "assistant", "tools", "chat_template_kwargs"),
    *("conversations", "conversation", "prompt", "completion", "text"),
    *("instruction", "input", "output", "response", "history"),
    *("input_ids", "labels", "assistant_masks", "completion_mask", "loss_mask", "attention_mask"),
)
"""What `columns` may give: whatever some format reads (`data_tools.formats`)."""


class SourceConfig(Section):
    """One source of rows: files, a folder, a URI or a hub data set (`path`), or an embedded sample (`sample`)."""

    path: Location | None = Field(None, examples=["chats.jsonl"])
    """A JSON, JSONL, CSV, Parquet or Arrow file, compressed or not, a glob of them, an fsspec URI (`s3://…`), a folder
    in any layout that `datasets` reads, or the id of a data set on the hub."""
    config: str | None = Field(None, examples=["SFT"])
    """The data set's configuration, when it has several (SmolTalk2: `SFT`)."""
    split: str | None = Field(None, examples=["train"])
    """The split to read, or `all` for every split, each as a source of its own."""
    revision: str | None = Field(None, examples=["main"])
    """A commit, tag or branch of a hub data set."""
    sample: Literal["python_docs"] | None = None
    """Chats built from the documentation of Python's standard library, present on every machine."""
    name: str | None = Field(None, examples=["chats"])
    """What reports call the source; by default its split, or its file's name."""
    format: Literal["auto", "messages", "prompt_completion", "text", "instruction", "sharegpt", "tokens"] = "auto"
    """The shape of its rows; auto: told by the columns of the first row."""
    columns: dict[str, str] | None = Field(None, examples=[{"user": "{question}", "assistant": "{answer}"}])
    """Other names or compositions of columns: `{instruction: question}` renames, `{user: "{question}"}` composes."""
    function: str | None = Field(None, examples=["my_rows:to_messages"])
    """`module:function`, which makes a row of a known shape of each row."""
    roles: dict[str, Literal["system", "developer", "user", "assistant", "tool", "function_call"]] = Field(
        {}, examples=[{"doctor": "assistant"}]
    )
    """Names of roles in the rows → system, user, assistant or tool; the usual ones (human, gpt, …) are known."""
    weight: float = Field(1.0, gt=0, le=1000)
    """How often the plan takes the source: 0.5 takes half of it, 2 all of it twice."""
    max_rows: int | None = Field(None, ge=1, examples=[10_000])
    """The plan takes no more documents of the source than this."""
    max_tokens: int | None = Field(None, ge=1, examples=[1_000_000])
    """The plan takes no more tokens of the source than this."""

    @model_validator(mode="after")
    def _one_origin(self) -> "SourceConfig":
        if (self.path is None) == (self.sample is None):
            raise ValueError("give either `path` or `sample`, for example `path: chats.jsonl`")
        return self

    @field_validator("columns")
    @classmethod
    def _fields_are_known(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        for name in columns or {}:
            if name not in FIELDS:
                near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.75)
                hint = f"did you mean {near[0]}?" if near else f"it may be one of {', '.join(FIELDS)},"
                raise ValueError(f"no format has a field {name}; {hint} for example `columns: {{output: answer}}`")
        return columns


class TokenizerTraining(Section):
    """Train a byte-level BPE tokenizer with a ChatML template on the sources, instead of loading one."""

    vocab_size: int = Field(4096, ge=300)
    """Entries of the vocabulary, special tokens included."""


class ValidationConfig(Section):
    """The documents held out for evaluation, chosen by the hash of their tokens: never random, never in training."""

    fraction: float | None = Field(None, ge=0, lt=1, examples=[0.01])
    """The expected share of documents; by default 0.01, where there is no `count`."""
    count: int | None = Field(None, ge=0, examples=[100])
    """The number of documents, instead of a share."""

    @property
    def share(self) -> float:
        """The share that counts where there is no `count`."""
        return 0.01 if self.fraction is None else self.fraction

    @model_validator(mode="after")
    def _one_measure(self) -> "ValidationConfig":
        if self.fraction is not None and self.count is not None:
            raise ValueError(
                f"give either `fraction` or `count`, not both, for example `validation: {{count: {self.count}}}`"
            )
        return self


class DataConfig(Section):
    """What becomes tokens, and how."""

    sources: list[SourceConfig] = Field(min_length=1, examples=[[{"path": "chats.jsonl"}]])
    tokenizer: Location | TokenizerTraining = Field(examples=["models/SmolLM2-135M-Instruct"])
    """A folder, hub id or SentencePiece model, or `{vocab_size: …}` to train a small one."""
    tokenizer_revision: str | None = Field(None, examples=["main"])
    """A commit, tag or branch of the tokenizer on the hub."""
    special_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = Field((), examples=[["<|user|>"]])
    """Control tokens that the tokenizer has not yet; the model's embedding gets rows for them."""
    store: Location | None = Field(None, examples=["tokens"])
    """Where the token store goes; by default `tokens` below the run's folder."""

    chat_template: Location | None = Field(None, examples=["chatml"])
    """A Jinja file, the name of one of the tokenizer's templates, or `chatml`; by default the tokenizer's own."""
    template_date: date = date(2025, 1, 1)
    """What `strftime_now` answers in templates: tokens must not depend on the day they are made."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = "assistant"
    """What is learnt: every answer, the last answer, what follows the last user message, or every token."""
    train_end_of_turn: bool = True
    """Whether the token that ends an answer is learnt; without it a model never stops."""
    train_headers: bool = False
    """Whether what the template itself puts before an answer (its header, an empty think block) is learnt too."""
    on_rewrite: Literal["error", "last_turn", "split_turns"] = "error"
    """Chats whose earlier turns the template rewrites: reject them, learn only the last answer, or make one document
    per answer."""
    control_tokens: Literal["keep", "escape", "reject"] = "keep"
    """Control tokens such as `<|im_end|>` inside messages: encode them as such, encode them as plain text, or reject
    the row."""
    encoder: Literal["auto", "gigatoken", "tokenizers"] = "auto"
    """What encodes text; auto: gigatoken where it is installed and agrees with the tokenizer on this data, and
    sentencepiece where the tokenizer is nothing but a SentencePiece model."""
    max_reject_fraction: float = Field(0.05, ge=0, le=1)
    """More rejected rows than this share stop the preparation."""

    max_length: int = Field(2048, ge=8)
    """Tokens in one packed row, and the longest document that is trained on."""
    too_long: Literal["drop", "truncate", "split", "error"] = "drop"
    """What happens to documents of more than `max_length` tokens."""
    packing: Literal["best_fit", "none", "wrapped"] = "best_fit"
    """Whole documents in the fewest packs; one document a pack; or (plain text) one stream cut every `max_length`."""
    weights_by: Literal["rows", "tokens"] = "rows"
    """What the `weight` of a source is a multiple of."""
    deduplicate: bool = False
    """Whether the plan leaves out documents whose tokens are those of an earlier one."""
    validation: ValidationConfig = Field(ValidationConfig(), examples=[{"fraction": 0.01}])

    actors: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Ray actors that tokenize; 0 works in this process; auto: 0 below 50,000 rows, else one per CPU."""
    rows_per_shard: int | None = Field(None, ge=1, examples=[10_000])
    """Rows of a source in one unit of work, which becomes one shard; by default about 256 MB of text, less for small
    inputs."""

    def asked(self) -> dict[str, Any]:
        """What decides the tokens, as it was asked for: without folders, which differ from machine to machine, but with
        the owners of the hub.
        """
        values = self.model_dump(mode="json", include=set(_DECIDES_TOKENS))
        if not values["special_tokens"]:
            del values["special_tokens"]  # as stores have it that were made before there were any
        for source in values["sources"]:
            for key in ("weight", "max_rows", "max_tokens"):
                del source[key]
        for place in (values, *values["sources"]):
            for key in ("path", "tokenizer", "chat_template"):
                if isinstance(place.get(key), str) and (key == "chat_template" or not is_hub_id(place[key])):
                    place[key] = PurePath(place[key]).name
        return values


_DECIDES_TOKENS = (
    *("sources", "tokenizer", "tokenizer_revision", "special_tokens"),
    *("chat_template", "template_date", "control_tokens"),
    *("train_on", "train_end_of_turn", "train_headers", "on_rewrite"),
)
