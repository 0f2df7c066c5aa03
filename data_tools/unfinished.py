"""What an earlier preparation left of a store that it did not finish.

Units of the same settings are kept. Others cannot be: they are cleared away when the new ones begin, which is told.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.changes import content_changes, in_words
from data_tools.fingerprint import fingerprint_of
from data_tools.mirror import Mirror
from data_tools.readers import WorkUnit
from data_tools.records import read_record
from data_tools.sealed import is_sealed, read_object, seal
from data_tools.store import write_json

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
            leftover.unlink()


def find_leftovers(mirror: Mirror, units: list[WorkUnit], made_with: dict[str, Any]) -> Leftovers:
    """Look what is there; nothing is changed.

    Args:
        mirror: where the store is.
        units: all units that are to be made.
        made_with: `asked` and `settings`, as the manifest will have them.
    """
    fingerprint = fingerprint_of(made_with["settings"])
    kept = {unit.number for unit in units if read_record(mirror, unit, fingerprint)}
    lost = sum(bool(re.fullmatch(r"\d+\.json", name)) for name in mirror.names("units")) - len(kept)
    if not lost:
        return Leftovers(kept, None)
    are = "unit of an earlier preparation is" if lost == 1 else "units of an earlier preparation are"
    return Leftovers(kept, f"{lost:,} finished {are} made again: {_reason(mirror, made_with, lost)}")


def _reason(mirror: Mirror, now: dict[str, Any], lost: int) -> str:
    before = read_object(mirror.folder / _SETTINGS) if mirror.pull(_SETTINGS, again=True) else None
    if before is None or not is_sealed(before):
        return f"{'its' if lost == 1 else 'their'} settings are not known any more"
    if before["settings"]["format_version"] != now["settings"]["format_version"]:
        return "another version of shardtune writes another format"
    if changes := content_changes(before, now):
        return in_words(changes)
    are = "it is" if lost == 1 else "they are"
    return f"{are} damaged, or another version of shardtune cut the files elsewhere"


def begin(mirror: Mirror, left: Leftovers, made_with: dict[str, Any]) -> None:
    """Clear away what cannot be used, and note what units are made with from now on."""
    for folder in (mirror.folder / "shards", mirror.folder / "units"):
        if not left.kept:
            shutil.rmtree(folder, ignore_errors=True)
            mirror.remove(folder.name)
        folder.mkdir(exist_ok=True)
    write_json(mirror.folder / _SETTINGS, seal(made_with))
    mirror.push(_SETTINGS)
