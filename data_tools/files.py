"""Data files by their location, a local path or an fsspec URI: which format, how large, the bytes without compression.

What a library raises while a file is read becomes one line that names the file.
"""

import difflib
import io
import lzma
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import glob, has_magic
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, cast

import pyarrow as pa

from data_tools.errors import OutOfReach, UserError
from data_tools.store import file_digest

Format = Literal["jsonl", "json", "csv", "parquet", "arrow"]

FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
BLOCK = 2**20
"""Bytes that are read at once."""
LONGEST_ROW = 2**28
"""Bytes of the longest row: what is longer is no text with line breaks, or has a quote that is never closed."""
BLANK = b" \t\r\n"
"""Lines of nothing else are no rows."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_OF_LIBRARIES = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("aiohttp", "ClientError"),
)
"""Errors that are no OSError; they can only be raised once their module is there."""


def is_remote(location: str) -> bool:
    """Whether a location is a URI such as `s3://bucket/chats.jsonl`."""
    return "://" in location


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file or folder here can be `owner/name` on the hub."""
    return _HUB_ID.fullmatch(name) is not None and _endings(name)[0] not in FORMATS and not Path(name).exists()


def file_name(location: str) -> str:
    """The last part of a location."""
    return PurePosixPath(location).name


def _endings(location: str) -> tuple[str, str]:
    """`.jsonl` and `.gz` of `chats.jsonl.gz`; `.csv` and nothing of `chats.csv`."""
    path = PurePosixPath(file_name(location).lower())
    return (PurePosixPath(path.stem).suffix, path.suffix) if path.suffix in COMPRESSIONS else (path.suffix, "")


def is_data_file(location: str) -> bool:
    """Whether a name ends like a file of rows."""
    return _endings(location)[0] in FORMATS


def shown_path(location: str | Path) -> str:
    """A path as people read it: from the folder where the command runs, where it lies below that."""
    return short_paths(str(location))


def short_paths(text: str) -> str:
    """Paths in a text as people read them: without the folder where the command runs, and `~` for their home."""
    folders = [(Path.home(), "~/")]
    with suppress(FileNotFoundError):  # somebody deleted it
        folders.insert(0, (Path.cwd(), ""))
    for folder, shown in folders:
        if folder != Path(folder.anchor):
            text = re.sub(rf"(?<![\w.~/-]){re.escape(str(folder))}/", shown, text)
    return text


def near_path(location: str) -> str:
    """` (did you mean data/chats.jsonl?)` where the folder of a mistyped path has something of nearly that name."""
    folder = Path(location).parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(location).name, names, n=1)
    return f" (did you mean {folder / near[0]}?)" if near else ""


def check_format(location: str) -> None:
    """Say at once which files cannot be read.

    Raises:
        UserError: the ending is none of the known.
    """
    ending, compression = _endings(location)
    if ending not in FORMATS:
        known = f"{', '.join(sorted(FORMATS))} (or with {', '.join(COMPRESSIONS)})"
        raise UserError(f"data.sources: {location} is none of {known}; convert or rename it")
    if compression and FORMATS[ending] in ("parquet", "arrow"):
        raise UserError(f"data.sources: {location}: {ending} files are compressed inside; decompress it first")


def data_format(location: str) -> Format:
    """The format by the file's ending; a `.json` file that does not start with `[` has one object a line.

    Raises:
        UserError: a `.json` file is one object over several lines.
    """
    name = FORMATS[_endings(location)[0]]
    if name != "json":
        return name
    with reading(location), open_stream(location) as stream:
        first = stream.readline(BLOCK).removeprefix(BYTE_ORDER_MARK).strip()
        while not first and (line := stream.readline(BLOCK)):
            first = line.strip()
    if first == b"{":
        raise UserError(f"data.sources: {location} is neither an array of rows nor one object a line; convert it")
    return "json" if first.startswith(b"[") else "jsonl"


def is_compressed(location: str) -> bool:
    """Whether the bytes of a file can only be reached from its start."""
    return bool(_endings(location)[1])


def find_files(pattern: str) -> list[str]:
    """The files that a path, a glob or a URI names, sorted; none where a glob matches nothing.

    Raises:
        UserError: the store cannot be reached, or its library is not installed.
    """
    if not is_remote(pattern):
        if Path(pattern).is_file():
            return [pattern]
        return sorted(name for name in glob(pattern, recursive=True) if Path(name).is_file())  # noqa: PTH207
    with reading(pattern):
        system, path = open_file_system(pattern)
        if not has_magic(path):
            if system.info(path)["type"] == "directory":
                raise UserError(f"data.sources: {pattern} is a folder; give a glob such as {pattern}/*.parquet")
            return [pattern]
        found = system.glob(path, detail=True)
        return sorted(system.unstrip_protocol(name) for name, info in found.items() if info["type"] == "file")


def file_size(location: str) -> int:
    """Bytes of a file as it is stored."""
    with reading(location):
        if not is_remote(location):
            return Path(location).stat().st_size
        system, path = open_file_system(location)
        return int(system.info(path)["size"])


def content_digest(location: str) -> str:
    """BLAKE3 of a file as it is stored; remote ones are streamed."""
    with reading(location):
        if not is_remote(location):
            return file_digest(Path(location))
        from blake3 import blake3  # training alone does without

        digest = blake3()
        with open_stored(location) as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()


def open_stored(location: str) -> IO[bytes]:
    """The bytes as they are stored, buffered and seekable."""
    if not is_remote(location):
        return open(location, "rb", buffering=BLOCK)
    system, path = open_file_system(location)
    return io.BufferedReader(system.open(path, "rb"), BLOCK)


def open_stream(location: str) -> io.BufferedReader:
    """The bytes without compression, buffered; compressed ones cannot be sought."""
    stored = cast(io.BufferedReader, open_stored(location))
    match _endings(location)[1]:
        case "":
            return stored
        case ".xz":
            return io.BufferedReader(lzma.LZMAFile(stored), BLOCK)
        case ending:
            # Not the readers that fsspec registers: theirs for zstd takes a broken file, or the second half of a
            # concatenated one, for the end.
            codec = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}[ending]
            return io.BufferedReader(cast(io.RawIOBase, pa.CompressedInputStream(pa.PythonFile(stored), codec)), BLOCK)


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Turn what goes wrong with a file into one line.

    Raises:
        UserError: the file is not there, may not be read, or is broken.
    """
    try:
        yield
    except _errors() as error:
        raise UserError(f"data.sources: cannot read {location}: {_reason(error)}") from None


@contextmanager
def writing(location: str, setting: str = "data.store") -> Iterator[None]:
    """Turn what goes wrong with an object that a setting names into one line.

    Raises:
        UserError: the object store refuses, or has no such object.
        OutOfReach: it cannot be reached, or fails.
    """
    try:
        yield
    except _errors() as error:
        refused = isinstance(error, (FileNotFoundError, PermissionError)) or "credentials" in str(error).lower()
        raise (UserError if refused else OutOfReach)(f"{setting}: {location}: {_reason(error)}") from None


def _errors() -> tuple[type[Exception], ...]:
    of_libraries = (getattr(sys.modules[module], name) for module, name in _OF_LIBRARIES if module in sys.modules)
    return (OSError, EOFError, lzma.LZMAError, pa.ArrowException, *of_libraries)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, EOFError) or "Truncated compressed stream" in text:
        return "the compressed file ends too early; make or copy it again"
    if isinstance(error, FileNotFoundError):
        return "there is no such file; check the path"
    if isinstance(error, PermissionError):
        return f"access is refused ({text}); check the credentials and rights"
    if "credentials" in text.lower():
        return f"{text}; log in to the store, or set its environment variables"
    return text or type(error).__name__


def open_file_system(location: str, setting: str = "data.sources") -> tuple[Any, str]:
    """The fsspec file system of a URI that a setting names, and the path there.

    Raises:
        UserError: its library is not installed.
    """
    import fsspec

    protocol = location.partition("://")[0]
    open_system: Callable[[str], tuple[Any, str]] = fsspec.core.url_to_fs
    try:
        return open_system(location)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        hint = f"pip install 'shardtune[{extra}]'" if extra else str(error)
        raise UserError(f"{setting}: {protocol}:// needs another package: {hint}") from None
    except ValueError as error:
        raise UserError(f"{setting}: {location}: {error}") from None
