"""Preparation by one and by two Ray actors on this machine: the same rows, wall seconds, and the same bytes.

    python -m tests.benchmarks.actors [--rows 400000] [--encoder gigatoken] [--json FILE]

SHARDTUNE_REAL_DATA names the folder with tokenizers and data sets. Rates are from the first finished unit of work to
the last: Ray starts in the same seconds whatever there is to do. The whole command stands beside it.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from data_tools.config import DataConfig
from data_tools.prepare import prepare
from data_tools.records import UnitRecord
from tests.benchmarks.chats import write_chats


def main() -> None:
    """Prepare twice and print both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--encoder", default="gigatoken")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = Path(os.environ["SHARDTUNE_REAL_DATA"])
    folder = Path(tempfile.mkdtemp(prefix="shardtune-bench-"))
    try:
        chats = write_chats(data / "datasets", options.rows, folder / "chats.jsonl").with_suffix(".arrow")
        tokenizer = data / "tokenizers" / "minimind"
        results = [_prepared(chats, tokenizer, folder / f"by-{count}", count, options.encoder) for count in (1, 2)]
    finally:
        shutil.rmtree(folder)
    one, two = results
    if one["manifest"] != two["manifest"]:
        raise SystemExit("two actors did not write what one writes")
    print(f"{options.rows:,} chats, {options.encoder}; the stores are the same, byte for byte")
    print("| actors | rows/s | whole command |\n|---|---|---|")
    for count, each in enumerate(results, 1):
        print(f"| {count} | {each['rows_per_second']:,.0f} | {each['seconds']:.1f} s |")
    ratio = two["rows_per_second"] / one["rows_per_second"]
    print(f"two actors are {ratio:.2f} times as fast as one")
    if options.json:
        options.json.write_text(json.dumps({"rows": options.rows, "ratio": ratio, "by": results}, indent=1) + "\n")


def _prepared(chats: Path, tokenizer: Path, store: Path, actors: int, encoder: str) -> dict[str, Any]:
    config = DataConfig.model_validate(
        {
            "sources": [{"path": str(chats), "format": "messages"}],
            "tokenizer": str(tokenizer),
            "chat_template": "chatml",
            "template_date": date(2026, 1, 1),
            "encoder": encoder,
            "actors": actors,
        }
    )
    seen: list[tuple[float, int]] = []

    def on_unit(record: UnitRecord, rows: int) -> None:
        seen.append((time.perf_counter(), record.cut.rows))

    started = time.perf_counter()
    made = prepare(config, store, on_unit=on_unit)
    seconds = time.perf_counter() - started
    after_first = sum(rows for _, rows in seen[1:])
    return {
        "rows_per_second": after_first / (seen[-1][0] - seen[0][0]),
        "seconds": seconds,
        "manifest": made.manifest["shards"],
    }


if __name__ == "__main__":
    main()
