"""Inputs that many tests share."""

import json
import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import settings

from data_tools.config import DataConfig
from data_tools.prepare import prepare
from data_tools.store import INDEX_SCHEMA, StoredDocument, TokenStore, read_arrow, write_arrow

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("shared", deadline=None)  # other work on the machine must not fail a test
settings.load_profile("shared")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest --update-golden` writes rendered text anew; what changed is then read in the diff."""
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real tokenizers and data sets; missing ones skip a test on a desk, and fail it in CI."""
    folder = Path(os.environ.get("SHARDTUNE_REAL_DATA", ""))
    if not os.environ.get("SHARDTUNE_REAL_DATA") or not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail("SHARDTUNE_REAL_DATA must point to the real data in CI")
        pytest.skip("set SHARDTUNE_REAL_DATA to a folder with tokenizers and data sets")
    return folder


def chats(count: int) -> list[dict[str, Any]]:
    """Small chats of very different lengths; in some nearly all is learnt, in others nearly nothing."""
    return [
        {
            "messages": [
                {"role": "system", "content": "Be slow and careful. " * (30 if number % 20 == 0 else 1)},
                {"role": "user", "content": f"Count to {number % 17} and name a colour."},
                {"role": "assistant", "content": " ".join(str(n) for n in range(number % 17)) + f" blue-{number}"},
                {"role": "user", "content": "Thank you! " * (number % 5)},
                {"role": "assistant", "content": "You are welcome. " * (30 if number % 20 == 10 else 1)},
            ]
        }
        for number in range(count)
    ]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """One JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 chats."""
    return write_jsonl(tmp_path_factory.mktemp("chats") / "chats.jsonl", chats(200))


@pytest.fixture(scope="session")
def data_config(chat_file: Path) -> DataConfig:
    """How `store` was made: several shards, a small trained tokenizer."""
    return DataConfig.model_validate(
        {
            "sources": [{"path": str(chat_file)}],
            "tokenizer": {"vocab_size": 400},
            "max_length": 256,
            "rows_per_shard": 64,
            "validation": {"fraction": 0.1},
        }
    )


@pytest.fixture(scope="session")
def store(data_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A finished token store of 200 chats."""
    return prepare(data_config, tmp_path_factory.mktemp("store") / "tokens")


@pytest.fixture(scope="session")
def weighted_store(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The same documents, whose answers count 0.5, 2, 0 and 1 in turn; every third document has no weights."""
    folder = tmp_path_factory.mktemp("weighted") / "tokens"
    shutil.copytree(store.folder, folder)
    numbers = iter(range(len(store)))
    trained, weight = [], []
    for shard in store.manifest["shards"]:
        file = pa.ipc.open_file(str(store.folder / shard["file"]))
        batches = []
        for batch in (file.get_batch(number) for number in range(file.num_record_batches)):
            rows = [_answer_weights(store.document(number), number) for number in islice(numbers, batch.num_rows)]
            trained += [labels for _, labels, _ in rows]
            weight += [total for _, _, total in rows]
            column = pa.array([weights for weights, _, _ in rows], pa.list_(pa.float32()))
            batches.append(batch.set_column(2, "weights", column))
        write_arrow(folder / shard["file"], batches[0].schema, batches)
    index = read_arrow(store.folder / "index.arrow")
    index = index.set_column(1, "trained", pa.array(trained, pa.int32()))
    write_arrow(folder / "index.arrow", INDEX_SCHEMA, [index.set_column(2, "weight", pa.array(weight, pa.float32()))])
    return TokenStore(folder)


def _answer_weights(document: StoredDocument, number: int) -> tuple[list[float] | None, int, float]:
    """Weights of a document's trained runs, the number of its labels, and the sum of their weights."""
    lengths = document.mask_runs[1::2].tolist()
    weights = (
        [1.0] * len(lengths)
        if number % 3 == 0
        else [[0.5, 2.0, 0.0, 1.0][(number + n) % 4] for n in range(len(lengths))]
    )
    assert document.mask_runs[0], "a trained first token would be no label"
    labels = sum(length for length, weight in zip(lengths, weights, strict=True) if weight)
    total = sum(length * weight for length, weight in zip(lengths, weights, strict=True))
    return (None if number % 3 == 0 else weights), labels, total
