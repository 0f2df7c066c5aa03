"""Inputs that many tests share."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from data_tools.config import DataConfig
from data_tools.prepare import prepare
from data_tools.store import TokenStore

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
