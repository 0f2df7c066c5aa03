"""THE CONTRACT between the halves: the token store on disk. Imports pyarrow and a hash only.

    <store>/manifest.json       written last, with its own checksum: its existence means that the store is complete
            shards/NNNNN.arrow  one row per document (below), memory-mapped
            index.arrow         length, trained, weight, source, digest of every document: planning never sees tokens
            rejects.jsonl       every row that did not become a document, with file, row and reason
            tokenizer/          the tokenizer with its template, for training nodes and exports

A document's row: `input_ids` (uint16 where the vocabulary allows, else int32), `mask_runs` (alternating untrained and
trained run lengths, untrained first), `weights` (one per trained run; null where all are 1), `source` (position in the
manifest's sources), `row` (in that source, from 0). A row of a source can give several documents.

The index counts labels: a trained first token, which nothing predicts, is none. `trained` is their number, `weight`
the sum of their weights. `digest` is a hash of the tokens; `conversation` is that of the last document of the same row.
"""

import errno
import json
import os
import socket
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from data_tools.errors import UserError
from data_tools.sealed import is_sealed, read_object, seal
from data_tools.shards import Shard, running_totals
from data_tools.shards import StoredDocument as StoredDocument

FORMAT_VERSION = 6
MANIFEST = "manifest.json"

INDEX_SCHEMA = pa.schema(
    [
        ("length", pa.int32()),
        ("trained", pa.int32()),
        ("weight", pa.float32()),
        ("source", pa.int16()),
        ("digest", pa.uint64()),
        ("conversation", pa.uint64()),
    ]
)


def shard_schema(vocab_size: int) -> pa.Schema:
    """The columns of a shard; two bytes a token when every id fits."""
    token = pa.uint16() if vocab_size <= 2**16 else pa.int32()
    return pa.schema(
        [
            ("input_ids", pa.list_(token)),
            ("mask_runs", pa.list_(pa.int32())),
            ("weights", pa.list_(pa.float32())),
            ("source", pa.int16()),
            ("row", pa.int64()),
        ]
    )


def shard_name(number: int) -> str:
    """The file of work unit `number`, below the store's folder."""
    return f"shards/{number:05d}.arrow"


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Write to the temporary name that this yields; fsync, rename: readers see the whole file or none.

    Raises:
        UserError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = os.strerror(error.errno)
        raise UserError(f"cannot write {path}: {reason}; make room there and run the same command again") from None
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder survive a crash of the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """What a JSON file says, keys sorted: the same value always gives the same bytes."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write record batches as an Arrow IPC file, atomically; they may be made one by one."""
    with (
        atomically(path) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def read_arrow(path: Path) -> pa.RecordBatch:
    """Memory-map a file that `write_arrow` made of one batch; no byte is read before it is used."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def file_digest(path: Path) -> str:
    """BLAKE3 of a file. Mapped, which is no faster, a large file would count as this process's memory."""
    from blake3 import blake3  # training alone does without

    hasher, block = blake3(max_threads=blake3.AUTO), memoryview(bytearray(2**23))
    with open(path, "rb", buffering=0) as file:
        while read := file.readinto(block):
            hasher.update(block[:read])
    return hasher.hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """BLAKE3 of every file of a folder, by its name."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


Fetch = Callable[[str], bool]
"""Sees to it that a file of the store is in its folder; whether it is."""


class TokenStore:
    """A finished token store, memory-mapped.

    Raises:
        UserError: there is no finished store in the folder, its manifest is damaged, or another version made it.
    """

    def __init__(self, folder: Path, fetch: Fetch = lambda name: True) -> None:
        self.folder = folder
        self._fetch = fetch
        self.manifest = _read_manifest(folder)
        self._first_documents = running_totals(shard["documents"] for shard in self.manifest["shards"])
        self._shards: dict[int, Shard] = {}

    def __len__(self) -> int:
        return int(self._first_documents[-1])

    @property
    def fingerprint(self) -> str:
        """Names everything that decided the tokens."""
        return str(self.manifest["fingerprint"])

    @property
    def vocab_size(self) -> int:
        """Rows that a model's embedding must have at least."""
        return int(self.manifest["vocab_size"])

    @property
    def added_tokens(self) -> int:
        """How many of them, the last ones, are for `data.special_tokens`, which the tokenizer had not before."""
        return len(self.manifest["settings"].get("added_tokens", []))

    @cached_property
    def digests(self) -> dict[str, str]:
        """BLAKE3 of index, tokenizer and shards, by the name of the file."""
        tokenizer = {f"tokenizer/{name}": digest for name, digest in self.manifest["tokenizer"].items()}
        shards = {shard["file"]: shard["blake3"] for shard in self.manifest["shards"]}
        return {"index.arrow": self.manifest["index"], **tokenizer, **shards}

    def file(self, name: str) -> Path:
        """One of the store's files; of a store in an object store, it comes down first, and is compared then.

        Raises:
            UserError: it is missing, or came down as another one.
        """
        path = self.folder / name
        if not path.exists():
            self._fetch(name)
            try:
                if name in self.digests:
                    self.check(name)
            except UserError:
                path.unlink(missing_ok=True)
                raise
        return path

    @cached_property
    def index(self) -> dict[str, NDArray[Any]]:
        """`length`, `trained`, `weight`, `source`, `digest` of every document, in store order, without copying."""
        batch = read_arrow(self.file("index.arrow"))
        return {name: batch.column(name).to_numpy() for name in batch.schema.names}

    def document(self, number: int) -> StoredDocument:
        """Document `number`, in store order."""
        first_documents = self._first_documents
        if not 0 <= number < first_documents[-1]:
            raise IndexError(f"document {number} of {len(self)}")
        shard = bisect_right(first_documents, number) - 1
        opened = self._shards.get(shard)
        if opened is None:
            opened = self._shards[shard] = Shard(self.file(self.manifest["shards"][shard]["file"]))
        return opened.document(number - first_documents[shard])

    def shard_of(self, number: int) -> str:
        """The file that a document is in."""
        return str(self.manifest["shards"][bisect_right(self._first_documents, number) - 1]["file"])

    def place(self, number: int) -> tuple[int, int]:
        """The source of a document and its row there."""
        shard = bisect_right(self._first_documents, number) - 1
        self.document(number)
        return self._shards[shard].place(number - self._first_documents[shard])

    def verify(self) -> None:
        """Compare index, tokenizer and every shard with the checksums in the manifest.

        Raises:
            UserError: one is missing or was changed.
        """
        self.check_tokenizer()
        for name in self.digests:
            self.check(name)

    def check_tokenizer(self) -> None:
        """Compare the tokenizer with the checksums; another file beside it could change it.

        Raises:
            UserError: it is not what was written.
        """
        names = {f"tokenizer/{path.name}" for path in self.folder.glob("tokenizer/[!.]*")}
        for name in sorted(names | {name for name in self.digests if name.startswith("tokenizer/")}):
            self.check(name)

    def check(self, name: str) -> None:
        """Compare one file with its checksum.

        Raises:
            UserError: it is missing or was changed.
        """
        path = self.folder / name
        self._fetch(name)
        if not path.exists() or name not in self.digests or file_digest(path) != self.digests[name]:
            raise UserError(f"{path} is not what was written; delete {self.folder} and run `shardtune prepare`")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.exists():
        state = "is not finished" if (folder / "shards").exists() else "does not exist"
        raise UserError(f"the token store {folder} {state}; run `shardtune prepare` with the same configuration")
    manifest = read_object(path)
    version = manifest and manifest.get("format_version")
    if version and version != FORMAT_VERSION:
        raise UserError(
            f"the token store {folder} has format {version}, this shardtune reads {FORMAT_VERSION}; keep it and give "
            f"another name=NAME or data.store=FOLDER, or delete it; then run `shardtune prepare`"
        )
    if not manifest or not is_sealed(manifest):
        raise UserError(f"{path} is damaged; copy it again, or delete {folder} and run `shardtune prepare`")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Finish a store: `manifest` says what is in it."""
    write_json(folder / MANIFEST, seal(manifest))
