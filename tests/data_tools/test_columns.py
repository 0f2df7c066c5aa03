"""Columns renamed and composed, and rows remade by the user's own function."""

import sys
from pathlib import Path
from typing import Any

import pytest

from data_tools.columns import compose_columns, function_file, load_function
from data_tools.config import SourceConfig
from data_tools.errors import RowError, UserError
from data_tools.formats import Conversation, RowReader, with_format

MEDICAL = {"Question": "Why?", "Complex_CoT": "Hm.", "Response": "So."}


def test_turns_are_composed_of_columns() -> None:
    columns = {"user": "{Question}", "assistant": "<think>{Complex_CoT}</think>{Response}"}
    source = with_format(SourceConfig(path="rows", columns=columns), MEDICAL)
    sample = RowReader(source).read(MEDICAL)
    assert isinstance(sample, Conversation)
    assert [message["content"] for message in sample.messages] == ["Why?", "<think>Hm.</think>So."]


def test_other_names_of_columns() -> None:
    row = {"question": "2 + 2?", "answer": "4"}
    source = with_format(SourceConfig(path="rows", columns={"instruction": "question", "output": "answer"}), row)
    assert source.format == "instruction"
    sample = RowReader(source).read(row)
    assert isinstance(sample, Conversation)
    assert [message["content"] for message in sample.messages] == ["2 + 2?", "4"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"q": "Why?", "a": "So."}, {"user": "{q}", "assistant": "{a}"}),
        ({"q": "Why?", "a": "So."}, {"user": "q", "assistant": "a"}),
        ({"instruction": "Why?", "output": "So."}, {}),
        ({"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}, {}),
        ({"q": "Why?", "output": "So."}, {"instruction": "q"}),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, {}),
    ],
)
@pytest.mark.parametrize("system", ["You are helpful.", "persona", "{persona}"])
def test_one_system_prompt_for_all_rows(system: str, row: dict[str, Any], columns: dict[str, str]) -> None:
    row = row if system == "You are helpful." else {**row, "persona": "You are helpful."}
    source = with_format(SourceConfig(path="rows", columns={"system": system, **columns}), row)
    sample = RowReader(source).read(row)
    assert isinstance(sample, Conversation)
    assert [message["content"] for message in sample.messages] == ["You are helpful.", "Why?", "So."]


def test_braces_are_written_twice() -> None:
    assert compose_columns({"x": "1"}, {"text": '{{"x": {x}}}'})["text"] == '{"x": 1}'
    assert compose_columns({"x": "1"}, {"text": "{{x}}"})["text"] == "{x}"


@pytest.mark.parametrize(
    ("row", "columns", "reason"),
    [
        ({"q": "Why?"}, {"prompt": "question"}, "there is no column 'question'; the columns are q"),
        ({"q": "Why?"}, {"system": "Helpful.", "user": "{q}"}, "there is no column 'Helpful.'"),
        ({"q": "Why?"}, {"user": "{q}", "assistant": "It is so."}, "there is no column 'It is so.'"),
        ({"q": "Why?"}, {"system": "You are helpful."}, "gives `system` and no other message"),
        ({"q": "Why?", "a": None}, {"user": "q", "assistant": "a"}, "column 'a' is missing, not text"),
        ({"q": ["Why?"], "a": "So."}, {"user": "q", "assistant": "a"}, "column 'q' is list, not text"),
        ({"q": {"x": 1}, "a": "So."}, {"text": "{q}"}, "column 'q' is dict, not text"),
        ({"q": None}, {"text": "{q}"}, "there is nothing in column 'q'"),
        ({"q": "Why?"}, {"text": "{q"}, "is not valid: expected '}'"),
        ({"q": "Why?"}, {"text": "{}"}, "there is nothing in column ''"),
        ({"q": "Why?"}, {"text": "{q!r}"}, "there is nothing in column 'q'"),
    ],
)
def test_rows_that_lack_something_are_refused(row: dict[str, Any], columns: dict[str, str], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        compose_columns(row, columns)
    with pytest.raises(UserError, match=f"the first row of rows: .*{reason}"):
        with_format(SourceConfig(path="rows", columns=columns), row)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of functions in the folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("rows_of_mine", "broken_rows"):
        sys.modules.pop(name, None)
    (tmp_path / "broken_rows.py").write_text("1 / 0\n")
    (tmp_path / "rows_of_mine.py").write_text(
        "def chat(row):\n"
        "    return {'messages': [{'role': 'user', 'content': row['q']}, {'role': 'assistant', 'content': row['a']}]}\n"
        "def text(row):\n"
        "    return row['q']\n"
    )
    return tmp_path / "rows_of_mine.py"


def test_a_function_makes_rows(module: Path) -> None:
    source = with_format(SourceConfig(path="rows", function="rows_of_mine:chat"), {"q": "Why?", "a": "So."})
    reader = RowReader(source)
    sample = reader.read({"q": "Why?", "a": "So."})
    assert isinstance(sample, Conversation)
    assert sample.messages[1]["content"] == "So."
    assert function_file("rows_of_mine:chat") == module
    with pytest.raises(RowError, match="rows_of_mine:chat refuses the row: KeyError: 'a'"):
        reader.read({"q": "Why?"})
    with pytest.raises(RowError, match="rows_of_mine:text returned str, not a row"):
        load_function("rows_of_mine:text")({"q": "Why?"})


@pytest.mark.parametrize("name", ["no_such_module:f", "rows_of_mine:no_such", "rows_of_mine", ":f", "broken_rows:f"])
def test_a_function_that_is_not_there_is_an_error(module: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot load the function .*; write it as module:function"):
        load_function(name)


def test_a_source_may_give_arguments_for_the_template_to_all_its_rows() -> None:
    """As docs/data.md shows it: JSON with doubled braces, also of columns."""
    said = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], "thinks": "true"}
    for template, arguments in (
        ('{{"enable_thinking": false}}', {"enable_thinking": False}),
        ('{{"enable_thinking": {thinks}, "level": 2}}', {"enable_thinking": True, "level": 2}),
    ):
        source = SourceConfig(path="a.jsonl", format="messages", columns={"chat_template_kwargs": template})
        for row in (said, {**said, "chat_template_kwargs": {"own": 1}}):
            sample = RowReader(source).read(row)
            assert isinstance(sample, Conversation) and sample.template_arguments == arguments
