"""What became of the settings since a token store was made: one wording, for `prepare` and for `plan`."""

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from data_tools.errors import UserError, as_yaml

Settings = Mapping[str, Any]

_SHOWN = 4
_LONGEST = 60
_DIGESTS = ("tokenizer", "chat_template")
"""Settings that a store remembers by what the files say."""


def check_asked(store: Path, before: Settings, now: Settings) -> None:
    """Compare how a configuration asks for tokens with how it did when the store was made.

    Args:
        store: its folder.
        before: `asked` of its manifest.
        now: `DataConfig.asked()`.

    Raises:
        UserError: something is asked for otherwise.
    """
    _refuse(store, list(_changes("data", before, now)))


def check_contents(store: Path, before: Settings, now: Settings) -> None:
    """Compare what decides the tokens, contents of files too.

    Args:
        store: its folder.
        before: its manifest.
        now: `asked` and `settings`, as a manifest has them.

    Raises:
        UserError: something differs.
    """
    _refuse(store, content_changes(before, now))


def content_changes(before: Settings, now: Settings) -> list[str]:
    """What differs between two preparations, of which `asked` and `settings` are given, as people say it."""
    old, new = dict(before["settings"]), dict(now["settings"])
    was, are = old.pop("sources"), new.pop("sources")
    special_tokens = _changes("the tokenizer's", old.pop("special_tokens"), new.pop("special_tokens"), " ")
    added = {"special_tokens": old.pop("added_tokens", [])}, {"special_tokens": new.pop("added_tokens", [])}
    digests = [key for key in _DIGESTS if old.pop(key) != new.pop(key)]
    if added[0] != added[1] and before["asked"]["tokenizer"] == now["asked"]["tokenizer"]:
        digests = [key for key in digests if key != "tokenizer"]  # it is another one by what was added
    changes = [*_changes("data", *added), *_changes("data", old, new), *_changed_sources(was, are), *special_tokens]
    for key in digests:
        asked = list(_changes("data", {key: before["asked"][key]}, {key: now["asked"][key]}))
        changes += asked or [f"the content of data.{key}"]
    if before["settings"] == now["settings"]:
        return []
    return changes or ["a setting that another version of shardtune did not know"]


def in_words(changes: list[str]) -> str:
    """The first few of them."""
    more = f", and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return ", ".join(changes[:_SHOWN]) + more


def _changed_sources(before: list[Settings], now: list[Settings]) -> Iterator[str]:
    """What became of the sources, which have names of their own."""
    was, are = ({source["name"]: source for source in sources} for sources in (before, now))
    for name in dict.fromkeys([*was, *are]):
        if name not in was or name not in are:
            yield f"the source {name} is {'new' if name in are else 'gone'}"
        elif was[name]["files"] != are[name]["files"]:
            yield f"the files of the source {name}"
        else:
            old, new = dict(was[name]), dict(are[name])
            modules, modules_now = old.pop("modules"), new.pop("modules")
            changes = list(_changes(f"the source {name}'s", old, new, " "))
            changed = sorted(each for each in {*modules, *modules_now} if modules.get(each) != modules_now.get(each))
            yield from changes or (f"the module {each} of the source {name}'s function" for each in changed)
    if list(was) != list(are) and was.keys() == are.keys():
        yield "the order of data.sources"


def _changes(place: str, before: Settings, now: Settings, joint: str = ".") -> Iterator[str]:
    """`data.train_on: assistant -> all` for every setting that is another."""
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if old == new or (key in ("path", "tokenizer") and _is_copy(old, new)):
            continue
        if isinstance(old, list) and isinstance(new, list) and key == "sources":
            for number, (was, is_now) in enumerate(zip_longest(old, new)):
                if was is None or is_now is None:
                    yield f"{place}.sources.{number} is {'new' if was is None else 'gone'}"
                else:
                    yield from _changes(f"{place}.sources.{number}", was, is_now)
        else:
            yield f"{place}{joint}{key}: {shortened(old)} -> {shortened(new)}"


def _is_copy(old: Any, new: Any) -> bool:
    """Whether one may be a folder with the other, `owner/name` of the hub: folders are known by their last part."""
    names = (str(old), str(new))
    return any(
        "/" not in bare and "/" in full and full.rpartition("/")[2] == bare for bare, full in (names, names[::-1])
    )


def shortened(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = as_yaml(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _refuse(store: Path, changes: list[str]) -> None:
    if not changes:
        return
    raise UserError(
        f"the token store {store} was made with other settings ({in_words(changes)}); keep it and give "
        f"another name=NAME or data.store=FOLDER, or delete it; then run `shardtune prepare`"
    )
