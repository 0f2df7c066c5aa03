"""What of the settings is another, in words; and nothing where nothing is."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.changes import check_asked, check_contents
from data_tools.config import DataConfig
from data_tools.errors import UserError

MANIFEST: dict[str, Any] = {
    "asked": {
        "tokenizer": "smol",
        "chat_template": None,
        "train_on": "assistant",
        "sources": [{"path": "a.jsonl", "format": "auto"}, {"path": "b.jsonl", "format": "auto"}],
    },
    "settings": {
        "tokenizer": "1f",
        "chat_template": "2f",
        "special_tokens": {"eos_token": "</s>"},
        "train_on": "assistant",
        "rows_per_shard": None,
        "sources": [
            {
                "name": "a",
                "files": [{"name": "a.jsonl", "blake3": "3f"}],
                "format": "text",
                "columns": None,
                "modules": {},
            },
            {
                "name": "b",
                "files": [{"name": "b.jsonl", "blake3": "4f"}],
                "format": "text",
                "columns": None,
                "modules": {},
            },
        ],
    },
}


def told(check: Callable[..., None], before: Any, now: Any) -> list[str]:
    """The changes that the message names."""
    with pytest.raises(UserError, match=r"^the token store here was made with other settings \(.*\); keep it") as error:
        check(Path("here"), before, now)
    return str(error.value).partition("(")[2].rpartition("); keep it")[0].split(", ")


def changed(*paths: tuple[Any, ...]) -> dict[str, Any]:
    """The manifest with the last item of each path put at the place before it."""
    copy = deepcopy(MANIFEST)
    for *parents, key, value in paths:
        place: Any = copy
        for parent in parents:
            place = place[parent]
        place[key] = value
    return copy


A, B = MANIFEST["settings"]["sources"]


@pytest.mark.parametrize(
    ("now", "changes"),
    [
        (changed(("settings", "train_on", "all")), ["data.train_on: assistant -> all"]),
        (changed(("settings", "rows_per_shard", 64)), ["data.rows_per_shard: not set -> 64"]),
        (changed(("settings", "tokenizer", "9f")), ["the content of data.tokenizer"]),
        (changed(("settings", "tokenizer", "9f"), ("asked", "tokenizer", "big")), ["data.tokenizer: smol -> big"]),
        (changed(("settings", "special_tokens", {})), ["the tokenizer's eos_token: </s> -> not set"]),
        (
            changed(("settings", "added_tokens", ["<|a|>"]), ("settings", "tokenizer", "9f")),
            ["data.special_tokens: [] -> [<|a|>]"],
        ),
        (
            changed(("settings", "sources", 0, "columns", {"user": "{q}"})),
            ["the source a's columns: not set -> {user: '{q}'}"],
        ),
        (changed(("settings", "new", None)), ["a setting that another version of shardtune did not know"]),
        (changed(("settings", "sources", [A])), ["the source b is gone"]),
        (changed(("settings", "sources", [A, B, {**A, "name": "c"}])), ["the source c is new"]),
        (changed(("settings", "sources", [B, A])), ["the order of data.sources"]),
        (changed(("settings", "sources", 1, "files", [])), ["the files of the source b"]),
        (changed(("settings", "sources", 1, "modules", {"m": "5f"})), ["the module m of the source b's function"]),
        (changed(("settings", "sources", 1, "format", "tokens")), ["the source b's format: text -> tokens"]),
        (
            changed(*(("settings", f"key{number}", "x" * 99) for number in range(6))),
            [*(f"data.key{number}: not set -> {'x' * 60}…" for number in range(4)), "and 2 more"],
        ),
    ],
)
def test_every_change_of_what_decides_tokens_is_named(now: dict[str, Any], changes: list[str]) -> None:
    assert told(check_contents, MANIFEST, now) == changes
    check_contents(Path("here"), now, now)


@pytest.mark.parametrize(
    ("now", "changes"),
    [
        (changed(("asked", "train_on", "all")), ["data.train_on: assistant -> all"]),
        (changed(("asked", "sources", 1, "path", "c.jsonl")), ["data.sources.1.path: b.jsonl -> c.jsonl"]),
        (changed(("asked", "sources", [{"path": "a.jsonl", "format": "auto"}])), ["data.sources.1 is gone"]),
    ],
)
def test_every_change_of_what_is_asked_for_is_named(now: dict[str, Any], changes: list[str]) -> None:
    assert told(check_asked, MANIFEST["asked"], now["asked"]) == changes


def asked(tokenizer: str, path: str) -> dict[str, Any]:
    return DataConfig.model_validate({"tokenizer": tokenizer, "sources": [{"path": path}]}).asked()


def test_data_sets_and_tokenizers_of_two_owners_are_not_the_same() -> None:
    before = asked("one/tokens", "one/chats")
    assert told(check_asked, before, asked("one/tokens", "two/chats")) == [
        "data.sources.0.path: one/chats -> two/chats"
    ]
    assert told(check_asked, before, asked("two/tokens", "one/chats")) == ["data.tokenizer: one/tokens -> two/tokens"]
    check_asked(Path("here"), before, asked("one/tokens", "one/chats"))


def test_a_copy_in_a_folder_here_or_elsewhere_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like an owner may be a folder that is not on this machine; older stores have no owners at all."""
    hub = asked("one/tokens", "one/chats")
    for name in ("tokens", "chats"):
        (tmp_path / "one" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    here = asked("one/tokens", "one/chats")
    assert (here["tokenizer"], here["sources"][0]["path"]) == ("tokens", "chats")
    for before, now in ((hub, here), (here, hub), (here, asked(str(tmp_path / "tokens"), "/elsewhere/chats"))):
        check_asked(Path("store"), before, now)
    assert told(check_asked, here, asked("one/others", "one/chats")) == ["data.tokenizer: tokens -> one/others"]


VALUES = st.none() | st.integers(0, 2) | st.sampled_from(["a", "b"])


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("pqr"), VALUES), st.dictionaries(st.sampled_from("pqr"), VALUES))
def test_settings_that_differ_are_never_passed_over(before: dict[str, Any], now: dict[str, Any]) -> None:
    differing = {key for key in {*before, *now} if before.get(key) != now.get(key)}
    if differing:
        assert {change[len("data.")] for change in told(check_asked, before, now)} == differing
    else:
        check_asked(Path("here"), before, now)
