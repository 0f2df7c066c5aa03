"""JSON files that tell when they are damaged: who crashes may leave any bytes in a file written last."""

import hashlib
import json
from pathlib import Path
from typing import Any

from data_tools.store import write_json


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write an object with its checksum, atomically."""
    write_json(path, {"content": content, "sha256": _digest(content)})


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What `write_sealed` wrote, to the last letter; None: something else is there."""
    try:
        sealed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if not isinstance(sealed, dict) or not isinstance(content := sealed.get("content"), dict):
        return None
    return content if sealed.get("sha256") == _digest(content) else None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
