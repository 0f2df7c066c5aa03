"""The environment of jobs and libraries. The only file of the launcher that writes it."""

import os
import re
from pathlib import Path

from data_tools.errors import UserError


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that `sft.world` reads, and a fair share of the cores."""
    defaults = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), "TOKENIZERS_PARALLELISM": "false"}
    return {
        **defaults,
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }


_PASSED_ON = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "XDG_CACHE_HOME", "PYTHONPATH"),
    *("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_CONFIG_FILE"),
    *("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"),
)
"""Variables of who launches that jobs elsewhere get as well: places and names, never a key or a token."""


def variables_passed_on() -> tuple[tuple[str, str], ...]:
    """Those of `_PASSED_ON` that are set here."""
    return tuple((name, value) for name in _PASSED_ON if (value := os.environ.get(name)))


def read_secrets(path: Path) -> None:
    """Take variables from a file of lines NAME=value, as `slurm/common.sh` does: values as they are, nothing evaluated.

    Raises:
        UserError: others can read it, or a line is something else.
    """
    if not path.exists():
        return
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path} can be read by others; run chmod 600 on it")
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", line):
            raise UserError(f"{path}: line {number} is not NAME=value")
        name, _, value = line.partition("=")
        os.environ[name] = value


def use_ray_token() -> None:
    """Ray's clients look for a token only where they are told that there is one."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def quiet_libraries() -> None:
    """Keep the console for what shardtune says; whoever sets these variables decides otherwise."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def go_offline() -> None:
    """Whatever asks the hub from now on gets what is in the cache, at once; ranks and actors inherit it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
