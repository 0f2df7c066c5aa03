"""Everything that decides the tokens: two preparations with equal settings write equal stores."""

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from data_tools.config import DataConfig, SourceConfig
from data_tools.files import content_digest, file_name
from data_tools.local_modules import local_modules
from data_tools.sources import SourceFiles
from data_tools.store import FORMAT_VERSION, file_digest
from data_tools.tokenizer import tokenizer_digest

_LEARNING = ("train_on", "train_end_of_turn", "train_headers", "on_rewrite", "control_tokens")


def token_settings(
    config: DataConfig,
    sources: list[SourceFiles],
    configs: tuple[SourceConfig, ...],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """The settings by content: digests instead of paths.

    Args:
        config: the `data` section.
        sources: the files that were found.
        configs: the configuration of each, with its format.
        tokenizer: with the template that is used.
    """
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer_digest(tokenizer),
        "chat_template": hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        "special_tokens": tokenizer.special_tokens_map,
        **({"added_tokens": list(config.special_tokens)} if config.special_tokens else {}),
        "template_date": config.template_date.isoformat(),
        **{name: getattr(config, name) for name in _LEARNING},
        "rows_per_shard": config.rows_per_shard,
        "sources": [_source(*each) for each in zip(sources, configs, strict=True)],
    }


def file_digests(sources: list[SourceFiles], settings: dict[str, Any]) -> dict[str, str]:
    """BLAKE3 of every file of the sources that these settings are of."""
    of_sources = zip(sources, settings["sources"], strict=True)
    pairs = (
        (name, facts) for source, made in of_sources for name, facts in zip(source.files, made["files"], strict=True)
    )
    return {name: facts["blake3"] for name, facts in pairs}


def fingerprint_of(settings: dict[str, Any]) -> str:
    """sha256 of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _source(source: SourceFiles, config: SourceConfig) -> dict[str, Any]:
    return {
        "name": source.name,
        "files": [{"name": file_name(file), "blake3": content_digest(file)} for file in source.files],
        "format": config.format,
        "columns": config.columns,
        "function": config.function,
        "modules": _modules(config.function),
        "roles": config.roles,
    }


def _modules(function: str | None) -> dict[str, str]:
    return {name: file_digest(file) for name, file in local_modules(function).items()} if function else {}
