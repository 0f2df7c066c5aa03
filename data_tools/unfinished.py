"""What an earlier preparation left of a store that it did not finish.

Units of the same settings are kept. Others cannot be: they are cleared away when the new ones begin, which is told.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.changes import content_changes, in_words
from data_tools.errors import UserError
from data_tools.fingerprint import fingerprint_of
from data_tools.mirror import Mirror
from data_tools.readers import WorkUnit
from data_tools.records import read_record
from data_tools.sealed import is_sealed, read_object, seal
from data_tools.store import json_text, write_json

_SETTINGS = "units/settings.json"
"""What the finished units of a store were made with."""


@dataclass(frozen=True)
class Leftovers:
    """Finished units of an earlier preparation."""

    kept: set[int]
    """The numbers of those that are used."""
    told: str | None
    """One line about those that are made again; None: there are none."""


def remove_half_written(store: Path) -> None:
    """Delete the temporary files of who was killed while it wrote; nobody else may be at the store."""
    for folder in (store, store / "sample", store / "shards", store / "units"):
        for leftover in folder.glob(".*.tmp"):
            if leftover.is_dir():  # with a tokenizer
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def find_leftovers(mirror: Mirror, units: list[WorkUnit], made_with: dict[str, Any]) -> Leftovers:
    """Look what is there; nothing is changed.

    Args:
        mirror: where the store is.
        units: all units that are to be made.
        made_with: `asked` and `settings`, as the manifest will have them.
    """
    kept = finished_units(mirror, units, fingerprint_of(made_with["settings"]))
    lost = sum(bool(re.fullmatch(r"\d+\.json", name)) for name in mirror.names("units")) - len(kept)
    if not lost:
        return Leftovers(kept, None)
    are = "unit of an earlier preparation is" if lost == 1 else "units of an earlier preparation are"
    return Leftovers(kept, f"{lost:,} finished {are} made again: {_reason(mirror, made_with, lost)}")


def finished_units(mirror: Mirror, units: list[WorkUnit], fingerprint: str) -> set[int]:
    """The numbers of those that have a record."""
    return {unit.number for unit in units if read_record(mirror, unit, fingerprint)}


def _reason(mirror: Mirror, now: dict[str, Any], lost: int) -> str:
    before = _noted(mirror)
    if before is None:
        return f"{'its' if lost == 1 else 'their'} settings are not known any more"
    if changes := _changes(before, now):
        return changes
    are = "it is" if lost == 1 else "they are"
    return f"{are} damaged, or another version of shardtune cut the files elsewhere"


def begin(mirror: Mirror, left: Leftovers, made_with: dict[str, Any]) -> None:
    """Clear away what cannot be used, and note what units are made with from now on."""
    for folder in (mirror.folder / "shards", mirror.folder / "units"):
        if not left.kept:
            shutil.rmtree(folder, ignore_errors=True)
            mirror.remove(folder.name)
        folder.mkdir(exist_ok=True)
    _note(mirror, made_with)


def join(mirror: Mirror, made_with: dict[str, Any]) -> None:
    """Note what units are made with, as the first of several shares, or agree with what the first one noted.

    Nothing is cleared away: others may be at work, and what they finished is theirs.

    Raises:
        UserError: they make, or made, something else.
    """
    for folder in ("shards", "units"):
        (mirror.folder / folder).mkdir(exist_ok=True)
    mirror.create(_SETTINGS, json_text(seal(made_with)))
    if _noted(mirror) is None:  # damaged: it tells nobody anything
        _note(mirror, made_with)
    check_noted(mirror, made_with)


def check_noted(mirror: Mirror, made_with: dict[str, Any]) -> None:
    """See that units of these settings are still wanted.

    Raises:
        UserError: others are, or none.
    """
    before = _noted(mirror)
    where = mirror.uri or mirror.folder
    if before is None:
        raise UserError(f"{where} was finished or cleared away meanwhile; `shardtune prepare` makes what is missing")
    if fingerprint_of(before["settings"]) != fingerprint_of(made_with["settings"]):
        raise UserError(
            f"the unfinished token store {where} is made with other settings ({_changes(before, made_with)}); give all "
            f"shares the same, or give another name=NAME or data.store=FOLDER, or delete it"
        )


def _noted(mirror: Mirror) -> dict[str, Any] | None:
    """What the units there are made with; None: nothing is noted, or it is damaged."""
    found = read_object(mirror.folder / _SETTINGS) if mirror.pull(_SETTINGS, again=True) else None
    return found if found is not None and is_sealed(found) else None


def _note(mirror: Mirror, made_with: dict[str, Any]) -> None:
    write_json(mirror.folder / _SETTINGS, seal(made_with))
    mirror.push(_SETTINGS)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two preparations; nothing where they are the same."""
    if before["settings"]["format_version"] != now["settings"]["format_version"]:
        return "another version of shardtune writes another format"
    return in_words(content_changes(before, now))
