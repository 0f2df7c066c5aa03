"""The environment of jobs and libraries. The only file of the launcher that writes it."""

import base64
import json
import os
import re
import zlib
from pathlib import Path

from data_tools.errors import UserError


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that `sft.world` reads, and a fair share of the cores."""
    inherited = {name: value for name, value in os.environ.items() if name != _OFFLINE or not _went_offline}
    defaults = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), "TOKENIZERS_PARALLELISM": "false"}
    return {
        **defaults,
        **inherited,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }


_PLACES = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "PYTHONPATH", "SHARDTUNE_CACHE"),
    *("AWS_PROFILE", "AWS_CONFIG_FILE", "TRACKIO_DIR"),
)
"""Variables of who launches that jobs on nodes with the same folders get as well."""
_NAMES = (
    *("HF_ENDPOINT", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"),
    *("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"),
)
"""Those that jobs get anywhere. Neither has a key or a token."""


def variables_passed_on(places: bool, contained: bool) -> tuple[tuple[str, str], ...]:
    """Those variables of who launches that are set, and of use to jobs.

    Args:
        places: the jobs see the folders of this machine.
        contained: they run in containers, where `~` is another folder.

    Raises:
        UserError: there is a password in one, which everybody who sees the jobs would see.
    """
    wanted = (*_PLACES, *_NAMES) if places else _NAMES
    usual = {"HF_HOME": str(hub_cache())} if places and contained else {}
    found = tuple((name, value) for name in wanted if (value := os.environ.get(name) or usual.get(name)))
    for name, value in found:
        if re.search(r"://[^/@]*@", value):
            raise UserError(
                f"{name} has a password in it, which scripts and job queues would show; unset it here, and write it "
                f"into the file of cluster.secrets on the nodes"
            )
    return found


def places_passed_on() -> list[str]:
    """The folders that variables of who launches name, which jobs get as well: not those of AWS, with its keys."""
    paths = (os.environ.get(name, "") for name in _PLACES if not name.startswith("AWS_"))
    return [str(Path(path).expanduser()) for several in paths for path in several.split(os.pathsep) if path]


def hub_cache() -> Path:
    """Where what was fetched from the hub is kept."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME)


def read_secrets(path: Path) -> None:
    """Take variables from a file of lines NAME=value, as `slurm/common.sh` does.

    Raises:
        UserError: others can read it, or a line is something else.
    """
    os.environ.update(secrets_in(path))


def secrets_in(path: Path) -> dict[str, str]:
    """What is in a file of lines NAME=value: values as they are, nothing evaluated.

    Raises:
        UserError: others can read it, or a line is something else.
    """
    found: dict[str, str] = {}
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, PermissionError):  # below the home of another user there is nothing for this one
        return found
    if mode & 0o077:
        raise UserError(f"{path} can be read by others; run chmod 600 on it")
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", line):
            raise UserError(f"{path}: line {number} is not NAME=value")
        name, _, value = line.partition("=")
        found[name] = value
    return found


def secret_values(names: tuple[str, ...], path: Path) -> dict[str, str]:
    """The values of secrets, from a file of lines NAME=value or, where it lacks them, from the environment.

    Raises:
        UserError: one is in neither, or others can read the file.
    """
    known = {**os.environ, **secrets_in(path)}
    if missing := [name for name in names if not known.get(name)]:
        raise UserError(f"there is no {missing[0]}, neither in {path} nor in the environment; set it")
    return {name: known[name] for name in names}


FILES_VARIABLE = "SHARDTUNE_FILES"
"""In it the files of a run come to a machine that has nothing else of it."""


def files_given() -> dict[str, str]:
    """The files that came with this job: name → text."""
    packed = os.environ.get(FILES_VARIABLE)
    if packed is None:
        raise UserError(f"{FILES_VARIABLE} is not set; this runs in a job of shardtune launch --on hf-jobs")
    files: dict[str, str] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return files


def packed_files(files: dict[str, str]) -> str:
    """What `files_given` unpacks."""
    return base64.b64encode(zlib.compress(json.dumps(files).encode(), 9)).decode("ascii")


def set_deadline(seconds: float) -> None:
    """When training has to stop, in seconds since the epoch."""
    os.environ["SHARDTUNE_DEADLINE"] = str(seconds)


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
    """Whatever asks the hub from now on gets what is in the cache, at once. Actors inherit it; ranks do not, which read
    their model from the cache as well, but may send metrics and checkpoints to the hub.
    """
    global _went_offline
    _went_offline = _went_offline or _OFFLINE not in os.environ
    os.environ[_OFFLINE] = "1"


_OFFLINE = "HF_HUB_OFFLINE"
_went_offline = False
"""Whether that was said here, and not by who started this process."""
