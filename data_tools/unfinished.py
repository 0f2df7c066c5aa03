"""What an earlier preparation left of a store that it did not finish."""

import shutil
from pathlib import Path

from data_tools.mirror import Mirror
from data_tools.readers import WorkUnit
from data_tools.records import read_record


def remove_half_written(store: Path) -> None:
    """Delete the temporary files of who was killed while it wrote; nobody else may be at the store."""
    for folder in (store, store / "sample", store / "shards", store / "units"):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink()


def tidy_up(mirror: Mirror, units: list[WorkUnit], fingerprint: str) -> set[int]:
    """Clear away what other settings left unfinished; the units that these settings have finished."""
    finished = {unit.number for unit in units if read_record(mirror, unit, fingerprint)}
    for folder in (mirror.folder / "shards", mirror.folder / "units"):
        if not finished:
            shutil.rmtree(folder, ignore_errors=True)
            mirror.remove(folder.name)
        folder.mkdir(exist_ok=True)
    return finished
