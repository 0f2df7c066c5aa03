"""The hub: what a revision is, and files of a commit in the cache on this machine (`HF_HOME`).

`HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path

from data_tools.errors import UserError
from data_tools.files import is_hub_id, near_path
from data_tools.lock import Kind, Lock

_FETCH = "run `shardtune fetch CONFIG` on a machine with network"
_SETTING = {"dataset": "data.sources", "tokenizer": "data.tokenizer", "model": "model.path"}
_TIMEOUT = 10.0

_TOKENIZER_FILES = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.tiktoken"),
    *("tekken.json", "config.json", "chat_template*", "additional_chat_templates/*"),
)
_MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "*.py")
"""Code of a model's own lies there until `model.trust_remote_code` lets it run."""
_ONE_FILE = {"model.safetensors"}


def needed_files(kind: Kind, files: Iterable[str]) -> list[str]:
    """Those files of a tokenizer's or model's folder that are read."""
    patterns = _TOKENIZER_FILES if kind == "tokenizer" else _MODEL_FILES
    # Folders inside a model hold other forms of it (onnx, original): nothing of them is read.
    usable = (file for file in files if kind == "tokenizer" or "/" not in file)
    return sorted(file for file in usable if any(fnmatchcase(file, pattern) for pattern in patterns))


LookUp = Callable[[Kind, str, str | None], tuple[str, list[str]]]
"""`look_up`, or one that remembers its answers."""


def look_up(kind: Kind, name: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit that a branch, a tag or nothing (`main`) is now, and its files; asks the hub."""
    from huggingface_hub import HfApi

    with asking_hub(kind, name, revision):
        ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
        info = ask(name, revision=revision, timeout=_TIMEOUT)
    return str(info.sha), [file.rfilename for file in info.siblings or []]


def download(kind: Kind, name: str, commit: str, files: Sequence[str]) -> dict[str, Path]:
    """Download the files of a commit that are not in the cache yet: path in the repository → file on this machine."""
    from huggingface_hub import snapshot_download

    if found := cached(kind, name, commit, files):
        return found
    with asking_hub(kind, name, commit):
        snapshot_download(
            name, repo_type=_repo_type(kind), revision=commit, allow_patterns=[escape(file) for file in files]
        )
    found = cached(kind, name, commit, files)
    if not found:  # without a network, an incomplete folder is as good as a complete one to snapshot_download
        raise UserError(f"{_SETTING[kind]}: the hub has not sent all files of {name}; run `shardtune fetch` again")
    return found


def cached(kind: Kind, name: str, commit: str, files: Sequence[str]) -> dict[str, Path] | None:
    """The files of a commit when all are in the cache of this machine; asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    found = {file: try_to_load_from_cache(name, file, revision=commit, repo_type=_repo_type(kind)) for file in files}
    paths = {file: Path(path) for file, path in found.items() if isinstance(path, str)}
    return paths if len(paths) == len(files) else None


def tokenizer_folder(name: str, revision: str | None, lock: Lock | None) -> str:
    """The folder of a hub tokenizer in the cache: the commit of the lock, or that of the hub now.

    Loading it from there needs no network, and does not try again and again where there is none.

    Raises:
        UserError: the lock pins something else, its files are not here, or the hub does not give them.
    """
    if lock is not None:
        pin = lock.find("tokenizer", name, revision)
        files = require_cached("tokenizer", name, str(pin.commit), list(pin.files))
    else:
        commit, everything = look_up("tokenizer", name, revision)
        files = download("tokenizer", name, commit, needed_files("tokenizer", everything))
    return str(next((path.parent for file, path in files.items() if "/" not in file), name))


def model_folder(name: str, revision: str | None) -> str:
    """Where a model is read from: the folder of the cache that has a commit of the hub whole, so that nobody is asked
    for files that it has not either; else the name itself.
    """
    if not is_hub_id(name) or re.fullmatch("[0-9a-f]{40}", revision or "") is None:
        return name
    found = cached("model", name, str(revision), ["config.json"])
    if found is None:
        return name
    folder = found["config.json"].parent
    index = folder / "model.safetensors.index.json"
    weights = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.exists() else _ONE_FILE
    return str(folder) if all((folder / file).exists() for file in weights) else name


def require_cached(kind: Kind, name: str, commit: str, files: Sequence[str]) -> dict[str, Path]:
    """What the lock pins must be here.

    Raises:
        UserError: it is not.
    """
    found = cached(kind, name, commit, files)
    if found is None:
        raise UserError(f"{_SETTING[kind]}: {name} at {commit} is not in the cache of this machine; {_FETCH}")
    return found


def _repo_type(kind: Kind) -> str:
    return "dataset" if kind == "dataset" else "model"


@contextmanager
def asking_hub(kind: Kind, name: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub or the network refuses into one line."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"{_SETTING[kind]}: {name}"
    nothing_here = f"is no {'file or folder' if kind == 'dataset' else 'folder'} here{near_path(name)}"
    try:
        yield
    except GatedRepoError:
        raise UserError(f"{what} is gated; ask for access on its page, then set HF_TOKEN") from None
    except RepositoryNotFoundError:
        where = f"{nothing_here}, and no {kind} that the hub shows you"
        raise UserError(f"{what} {where}; check the path or id, or set HF_TOKEN if it is private") from None
    except RevisionNotFoundError:
        raise UserError(f"{what} has no revision {revision!r}; give a commit, tag or branch that it has") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "set HF_TOKEN to a token that may read it" if status in (401, 403) else "try again later"
        raise UserError(f"{what}: the hub answers with status {status}; {hint}") from None
    except OfflineModeIsEnabled:
        asked = f"the cache of the hub lacks it and HF_HUB_OFFLINE is set; check the path, or {_FETCH}"
        raise UserError(f"{what} {nothing_here}, {asked}") from None
    except (httpx2.HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        reason = " ".join(str(error).split()[:40]) or type(error).__name__
        asked = f"and the hub cannot be reached ({reason}); check the path, or {_FETCH}"
        raise UserError(f"{what} {nothing_here}, {asked}") from None
