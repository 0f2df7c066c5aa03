"""Folders of small runs that ranks of a test train in their own process."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from data_tools.store import TokenStore
from launcher.config import RunConfig
from launcher.stages import plan_stage

MODEL = {
    "architecture": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "attention_dropout": 0.1,
    "tie_word_embeddings": True,
}


def plan_run(
    folder: Path, store: TokenStore, chat_file: Path, ranks: int, validation: float = 0.1, **sections: Any
) -> Path:
    """Everything that `shardtune train` makes before it starts ranks."""
    data = {
        "sources": [{"path": str(chat_file)}],
        "tokenizer": {"vocab_size": 400},
        "max_length": 256,
        "rows_per_shard": 64,
        "validation": {"fraction": validation},
        "store": str(store.folder),
    }
    base = {"name": folder.name, "runs": str(folder.parent), "model": {"config": MODEL}, "data": data}
    config = RunConfig.model_validate(base | sections)
    plan_stage(config, Console(file=io.StringIO()), ranks)
    return folder
