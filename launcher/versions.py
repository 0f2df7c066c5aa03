"""What a run was launched with: the code's revision, and the versions of packages that decide results."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("shardtune", "torch", "deepspeed", "transformers", "tokenizers", "gigatoken", "datasets", "pyarrow", "numpy"),
    *("ray", "peft", "bitsandbytes", "liger-kernel"),
)


def versions() -> dict[str, Any]:
    """Python, packages, and the git revision of shardtune's code and of the working folder, where they have one."""
    return {
        "python": sys.version.split()[0],
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "code": revision(Path(__file__).parent),
        "working_folder": revision(Path.cwd()),
    }


def revision(folder: Path) -> dict[str, Any] | None:
    """The commit of a git checkout and whether files differ from it; None: it is none."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *command: str) -> str:
    result = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=True, timeout=60)
    return result.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
