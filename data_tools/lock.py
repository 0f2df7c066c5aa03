"""The lock of a run: which commits of the hub its inputs are, and what every file of them contains.

`shardtune fetch` writes it; afterwards everything reads the pinned commits from the cache, with the network off.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data_tools.errors import UserError
from data_tools.store import write_json

LOCK_FILE = "lock.json"
"""Its name in the folder of a run."""
FORMAT_VERSION = 1

Kind = Literal["dataset", "tokenizer", "model", "files"]


@dataclass(frozen=True)
class Pin:
    """One input: a repository of the hub at a commit, or local files."""

    kind: Kind
    id: str
    """The id on the hub, or the name of the local file, folder or glob."""
    files: dict[str, dict[str, Any]]
    """Path in the repository or folder → `size` in bytes and `blake3`."""
    revision: str | None = None
    """What was asked for."""
    commit: str | None = None
    """What that was; None: the files are local."""
    config: str | None = None
    split: str | None = None
    splits: dict[str, list[str]] | None = None
    """The files of each split of a data set that was asked for."""

    @property
    def asked(self) -> str:
        """The input as people name it."""
        details = [f"{key} {value}" for key in ("config", "split") if (value := getattr(self, key))]
        return " ".join([self.kind, self.id, *details]) + (f" at {self.revision}" if self.revision else "")

    @property
    def digests(self) -> dict[str, str]:
        """The content of each file."""
        return {file: facts["blake3"] for file, facts in self.files.items()}


@dataclass(frozen=True)
class Lock:
    """All inputs of a run."""

    path: Path
    pins: list[Pin]

    @classmethod
    def read(cls, path: Path) -> "Lock | None":
        """The lock, or None where nothing was fetched.

        Raises:
            UserError: it was written by another version, or is no lock.
        """
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format_version"] == FORMAT_VERSION:
                return cls(path, [Pin(**pin) for pin in values["pins"]])
        except (ValueError, KeyError, TypeError):
            pass
        raise UserError(f"{path} is not a lock of this version; delete it and run `shardtune fetch` again")

    def write(self) -> None:
        """Write it atomically; the same inputs always give the same bytes."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        pins = [{key: value for key, value in asdict(pin).items() if value is not None} for pin in self.pins]
        write_json(self.path, {"format_version": FORMAT_VERSION, "pins": pins})

    def find(
        self, kind: Kind, name: str, revision: str | None, config: str | None = None, split: str | None = None
    ) -> Pin:
        """The pin of an input on the hub.

        Raises:
            UserError: the configuration asks for something else than what was fetched.
        """
        wanted = Pin(kind, name, {}, revision, None, config, split)
        for pin in self.pins:
            same = (pin.kind, pin.id, pin.config, pin.split) == (kind, name, config, split)
            if same and revision in (pin.revision, pin.commit):
                return pin
        raise self._not_pinned(wanted)

    def find_local(
        self, name: str, digests: Mapping[str, str], config: str | None = None, split: str | None = None
    ) -> Pin:
        """The pin of local files; of several that are called so, the one that has these digests.

        Raises:
            UserError: none is called so.
        """
        wanted = Pin("files", name, {}, None, None, config, split)
        called = (PurePosixPath(name).name, config, split)  # the same input may be given by another path
        pins = [
            pin
            for pin in self.pins
            if pin.kind == "files" and (PurePosixPath(pin.id).name, pin.config, pin.split) == called
        ]
        if not pins:
            raise self._not_pinned(wanted)
        return next((pin for pin in pins if pin.digests == digests), pins[0])

    def _not_pinned(self, wanted: Pin) -> UserError:
        pinned = "; ".join(pin.asked for pin in self.pins if pin.kind == wanted.kind) or f"no {wanted.kind}"
        return UserError(
            f"{self.path} pins {pinned}, but the configuration asks for {wanted.asked}; "
            f"delete the lock and run `shardtune fetch CONFIG` again"
        )

    def compare(self, pin: Pin, digests: Mapping[str, str]) -> None:
        """Compare the files of an input with its pin.

        Raises:
            UserError: one is missing, is another one, or was not there.
        """
        for file in sorted(pin.digests.keys() | digests.keys()):
            if pin.digests.get(file) != digests.get(file):
                cure = "delete it from the cache (HF_HOME)" if pin.commit else "put it back, or delete the lock"
                raise UserError(f"{file} of {pin.asked} is not what {self.path} says; {cure} and fetch again")
