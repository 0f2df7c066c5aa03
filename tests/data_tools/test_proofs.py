"""A preparation whose tokens, masks or template are wrong in one place fails, and says in which row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from data_tools.config import DataConfig
from data_tools.encode import Encoder
from data_tools.errors import UserError
from data_tools.prepare import prepare
from data_tools.tokenizer import CHATML
from tests.conftest import chats, write_jsonl

ROWS = 12
WRONG_ROW = 7


def prepare_chats(folder: Path, form: str = "jsonl", **settings: Any) -> None:
    """Two units of six rows, all of the sample: rows go one by one, or in columns."""
    rows = chats(ROWS)
    rows[WRONG_ROW]["messages"][1]["content"] += " ¤"  # what no other row says
    file = folder / f"chats.{form}"
    if form == "jsonl":
        write_jsonl(file, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    values = {"sources": [{"path": str(file)}], "tokenizer": {"vocab_size": 300}, "rows_per_shard": 6, "actors": 0}
    prepare(DataConfig.model_validate({**values, **settings}), folder / "tokens")


def in_wrong_row(texts: Any) -> int | None:
    """Its place among texts that are encoded together."""
    return next((number for number in range(len(texts)) if "¤".encode() in texts.text(number)), None)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_tokens_that_are_not_the_tokenizers_stop_the_preparation(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last token of one document is another one of as many bytes: nothing else can see it."""
    right: Callable[..., Any] = Encoder._ids_of_bytes

    def wrong(self: Encoder, texts: Any) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        ids, offsets = right(self, texts)
        if (number := in_wrong_row(texts)) is not None:
            ids, last = ids.copy(), offsets[number + 1] - 1
            assert self._backend.id_to_token(int(ids[last])) == "Ċ"
            ids[last] += 1
        return ids, offsets

    monkeypatch.setattr(Encoder, "_ids_of_bytes", wrong)
    with pytest.raises(UserError, match=rf"row 7 of .*chats\.{form}: the encoder's ids are not the tokenizer's"):
        prepare_chats(tmp_path, form)
    assert not (tmp_path / "tokens" / "manifest.json").exists()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("border", [0, -1], ids=["begins late", "ends early"])
def test_a_mask_that_is_off_by_one_token_stops_the_preparation(
    border: int, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right: Callable[..., Any] = Encoder._borders

    def wrong(self: Encoder, texts: Any, *others: Any) -> NDArray[np.int64]:
        borders: NDArray[np.int64] = right(self, texts, *others)
        if (number := in_wrong_row(texts)) is not None:
            own = np.split(borders, np.cumsum(texts.border_counts)[:-1])[number]  # a view
            own[border] += 1 if border == 0 else -1
        return borders

    monkeypatch.setattr(Encoder, "_borders", wrong)
    with pytest.raises(UserError, match=rf"row 7 of .*chats\.{form}: the mask is not that of the tokenizer's offsets"):
        prepare_chats(tmp_path, form)
    assert not (tmp_path / "tokens" / "manifest.json").exists()


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_compiled_template_that_writes_something_else_stops_the_preparation(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template looks at contents; were that not seen, its skeleton would write the same number everywhere."""
    looking = CHATML.replace("{%- endfor -%}", "{{- message.content | length -}}{%- endfor -%}")
    (tmp_path / "looking.jinja").write_text(looking, encoding="utf-8")
    prepare_chats(tmp_path, form, chat_template=str(tmp_path / "looking.jinja"))
    (tmp_path / "tokens").rename(tmp_path / "seen")
    monkeypatch.setattr("data_tools.skeleton.contents_only_flow_out", lambda template: True)
    with pytest.raises(UserError, match=rf"row \d of .*chats\.{form}: the compiled template does not write what"):
        prepare_chats(tmp_path, form, chat_template=str(tmp_path / "looking.jinja"))


ENCLOSING = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- generation -%}
{{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' -}}
{%- if not loop.last -%}{{- '<|im_start|>assistant\\n' + loop.nextitem.content + '<|im_end|>\\n' -}}{%- endif -%}
{%- endgeneration -%}
{%- elif message.role == 'system' -%}
{{- '<|im_start|>system\\n' + message.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_template_whose_tags_enclose_the_question_stops_the_preparation(form: str, tmp_path: Path) -> None:
    (tmp_path / "enclosing.jinja").write_text(ENCLOSING, encoding="utf-8")
    with pytest.raises(UserError, match=rf"row \d of .*chats\.{form}: .*generation tags enclose .*message 2"):
        prepare_chats(tmp_path, form, chat_template=str(tmp_path / "enclosing.jinja"))
    prepare_chats(tmp_path, form, chat_template=str(tmp_path / "enclosing.jinja"), train_on="all")
