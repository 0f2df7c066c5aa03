"""Our preparation, timed.

python ours_prepare.py TOKENIZER TEMPLATE CHATS STORE ENCODER THROUGH_JINJA MAX_LENGTH
"""

import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import awkward  # type: ignore[import-untyped, unused-ignore]  # noqa: F401 -- gigatoken imports it when it is first used; imports of TRL do not count either
import pandas  # type: ignore[import-untyped, unused-ignore]  # noqa: F401 -- likewise

from data_tools import prepare as driver
from data_tools.chat import ChatTemplate
from data_tools.config import DataConfig
from data_tools.documents import DocumentMaker
from data_tools.plan import PlanSettings, make_plan
from data_tools.store import TokenStore
from data_tools.tokenizer import load_tokenizer


def main() -> None:
    """Prepare and plan; print CPU seconds with and without loading the tokenizer."""
    tokenizer, template, chats, store, encoder, through_jinja, max_length = sys.argv[1:]
    if through_jinja == "True":
        ChatTemplate.chats = ChatTemplate.render_with_jinja  # type: ignore[method-assign]
        ChatTemplate.fills_columns = False  # type: ignore[assignment, method-assign]
    config = DataConfig.model_validate(
        {
            "sources": [{"path": chats, "format": "messages"}],
            "tokenizer": tokenizer,
            "chat_template": template,
            "template_date": date.today(),  # TRL cannot freeze it
            "train_headers": True,  # as the template's generation tags say, which is all that TRL knows
            "encoder": encoder,
            "actors": 0,
            "max_length": max_length,
            "validation": {"fraction": 0},
        }
    )
    loading = 0.0
    make = DocumentMaker.__init__

    def timed(self: DocumentMaker, *arguments: Any) -> None:
        nonlocal loading
        started = time.process_time()
        make(self, *arguments)
        loading = time.process_time() - started

    DocumentMaker.__init__ = timed  # type: ignore[assignment, method-assign]
    parts: dict[str, float] = {}
    for name in ("read_input", "_make_shards", "write_store"):
        _time(name, parts)
    started = time.process_time()
    made = driver.prepare(config, Path(store))
    planning = time.process_time()
    settings = PlanSettings.of(config, 8, 0)
    make_plan(made, settings, Path(store) / "plan")
    done = time.process_time()
    facts = {
        "cpu_s": sum(parts.values()) - loading + done - planning,
        "whole_cpu_s": done - started,
        "tokens": made.manifest["totals"]["tokens"],
        "bare_encode_cpu_s": _bare_encode(made, tokenizer),
    }
    print(json.dumps(facts))


def _time(name: str, parts: dict[str, float]) -> None:
    """Count the CPU seconds of one stage of the driver."""
    stage = getattr(driver, name)

    def timed(*arguments: Any) -> Any:
        started = time.process_time()
        result = stage(*arguments)
        parts[name] = time.process_time() - started
        return result

    setattr(driver, name, timed)


def _bare_encode(store: TokenStore, tokenizer_path: str) -> float:
    """The bare Rust tokenizer on the rendered texts, and nothing else."""
    tokenizer = load_tokenizer(tokenizer_path, "chatml")
    texts = [tokenizer.decode(store.document(number).input_ids.tolist()) for number in range(len(store))]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    started = time.process_time()
    backend.encode_batch_fast(texts, add_special_tokens=False)
    return time.process_time() - started


if __name__ == "__main__":
    main()
