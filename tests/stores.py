"""Token stores written by hand, for tests that want certain lengths, masks, weights or sources."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_tools.store import (
    FORMAT_VERSION,
    INDEX_SCHEMA,
    StoredDocument,
    TokenStore,
    file_digest,
    shard_name,
    shard_schema,
    write_arrow,
    write_manifest,
)


def write_store(folder: Path, documents: list[StoredDocument], sources: list[int], configured: list[int]) -> TokenStore:
    """A store of one shard.

    Args:
        sources: the source of every document.
        configured: the item of `data.sources` that each source comes from.
    """
    (folder / "shards").mkdir(parents=True)
    schema = shard_schema(60_000)
    columns = [
        pa.array([document.input_ids for document in documents], schema.field("input_ids").type),
        pa.array([document.mask_runs for document in documents], schema.field("mask_runs").type),
        pa.array([document.weights for document in documents], schema.field("weights").type),
        pa.array(sources, pa.int16()),
        pa.array(range(len(documents)), pa.int64()),
    ]
    write_arrow(folder / shard_name(0), schema, [pa.RecordBatch.from_arrays(columns, schema=schema)])
    weights = [label_weights(document)[1:] for document in documents]
    index = {
        "length": [len(document.input_ids) for document in documents],
        "trained": [int((of_document > 0).sum()) for of_document in weights],
        "weight": [float(of_document.sum()) for of_document in weights],
        "source": sources,
        "digest": [content_digest(document) for document in documents],
        "conversation": [content_digest(document) for document in documents],
    }
    write_arrow(folder / "index.arrow", INDEX_SCHEMA, [pa.RecordBatch.from_pydict(index, INDEX_SCHEMA)])
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": "by hand",
        "vocab_size": 60_000,
        "tokenizer": {},
        "index": file_digest(folder / "index.arrow"),
        "sources": [{"name": f"source-{n}", "configured": position} for n, position in enumerate(configured)],
        "shards": [{"file": shard_name(0), "documents": len(documents), "blake3": file_digest(folder / shard_name(0))}],
    }
    write_manifest(folder, manifest)
    return TokenStore(folder)


def random_documents(lengths: list[int], seed: int, weighted: bool = False) -> list[StoredDocument]:
    """Documents of given lengths, from 2 on; one to three runs of each are learnt."""
    random = np.random.default_rng(seed)
    documents = []
    for length in lengths:
        ends = np.sort(random.integers(0, length, 2 * random.integers(1, 4) - 1))
        runs = np.diff(ends, prepend=0, append=length).astype(np.int32)
        if runs[1::2].sum() == 0 or runs.tolist()[:2] == [0, 1]:
            runs = np.array([length - 1, 1], np.int32)
        weights = random.choice([0.5, 1, 2], len(runs) // 2).astype(np.float32) if weighted else None
        documents.append(StoredDocument(random.integers(0, 60_000, length).astype(np.uint16), runs, weights))
    return documents


def label_weights(document: StoredDocument) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """What each token counts as a label: 0 where it is not trained."""
    of_run = np.zeros(len(document.mask_runs), np.float32)
    of_run[1::2] = 1 if document.weights is None else document.weights
    return np.repeat(of_run, document.mask_runs)


def content_digest(document: StoredDocument) -> int:
    """Equal for equal tokens."""
    return int.from_bytes(hashlib.blake2b(document.input_ids.tobytes(), digest_size=8).digest(), "little")
