"""JSON files that tell when they are damaged: a machine or a copy that breaks off may leave any bytes."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HASH = "hash"


def seal(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same facts with their checksum, `hash`."""
    return {**facts, _HASH: _digest(facts)}


def is_sealed(facts: Mapping[str, Any]) -> bool:
    """Whether facts that were read are those that were sealed, to the last digit."""
    return facts.get(_HASH) == _digest(facts)


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, sealed or not; None: something else is there."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return facts if isinstance(facts, dict) else None


def _digest(facts: Mapping[str, Any]) -> str:
    others = {key: value for key, value in facts.items() if key != _HASH}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()
