"""Preparation against TRL's: the same chats, tokenizer and template, in one run, by CPU seconds.

    python tests/benchmarks/prepare.py --peer PYTHON_WITH_TRL [--rows 8000] [--repeats 3] [--json FILE]

SHARDTUNE_REAL_DATA names the folder with tokenizers and data sets. Prints one table; fails when ids or labels differ.

TRL's time is that of `SFTTrainer._prepare_dataset` (rows in memory → packed data set). Ours is from the file to the
finished store and its pack plan: the Arrow file of that very data set, or JSONL; both without loading the tokenizer.
The whole of `prepare` stands beside it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_tools.store import TokenStore
from data_tools.tokenizer import CHATML
from tests.benchmarks.chats import write_chats

HERE = Path(__file__).parent
MAX_LENGTH = 4096

CASES = {
    "ChatML, gigatoken": ("minimind", None, "gigatoken", ".arrow"),
    "ChatML, gigatoken, JSONL": ("minimind", None, "gigatoken", ".jsonl"),
    "ChatML (151k), gigatoken": ("qwen3", None, "gigatoken", ".arrow"),
    "SmolLM3's template, gigatoken": ("smollm3", "own", "gigatoken", ".arrow"),
    "SmolLM3 through Jinja, gigatoken": ("smollm3", "jinja", "gigatoken", ".arrow"),
    "ChatML, tokenizers": ("minimind", None, "tokenizers", ".arrow"),
    "ChatML (49k), tokenizers": ("smollm2", None, "auto", ".arrow"),  # which gigatoken does not know
}


def main() -> None:
    """Run every case in turns and print the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True, help="the Python of an environment with TRL 1.16")
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = Path(os.environ["SHARDTUNE_REAL_DATA"])
    folder = Path(tempfile.mkdtemp(prefix="shardtune-bench-"))
    try:
        chats = write_chats(data / "datasets", options.rows, folder / "chats.jsonl")
        results = [
            _case(name, *CASES[name], data=data, chats=chats, folder=folder, peer=options.peer, repeats=options.repeats)
            for name in options.cases
        ]
    finally:
        shutil.rmtree(folder)
    _print(results, options.rows)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _case(
    name: str,
    tokenizer: str,
    template: str | None,
    encoder: str,
    suffix: str,
    data: Path,
    chats: Path,
    folder: Path,
    peer: str,
    repeats: int,
) -> dict[str, Any]:
    tokenizer_path = data / "tokenizers" / tokenizer
    template_path = folder / "chatml.jinja"
    template_path.write_text(CHATML, encoding="utf-8")
    if template:
        template_path = tokenizer_path / "chat_template.jinja"
    ours, theirs = [], []
    for _ in range(repeats):
        store = folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        given = str(chats.with_suffix(suffix))
        arguments = [str(tokenizer_path), str(template_path), given, str(store), encoder, str(template == "jinja")]
        ours.append(_run(sys.executable, "ours_prepare.py", [*arguments, str(MAX_LENGTH)]))
        arrow = folder / "trl.arrow"
        arguments = [str(tokenizer_path), str(template_path), str(chats), str(MAX_LENGTH), str(arrow)]
        theirs.append(_run(peer, "trl_prepare.py", arguments))
    return {
        "case": name,
        "documents": _compare(store, arrow),
        "trl_cpu_s": statistics.median(each["cpu_s"] for each in theirs),
        "ours_cpu_s": statistics.median(each["cpu_s"] for each in ours),
        "ours_whole_cpu_s": statistics.median(each["whole_cpu_s"] for each in ours),
        "bare_encode_cpu_s": statistics.median(each["bare_encode_cpu_s"] for each in ours),
        "tokens": ours[0]["tokens"],
    }


def _run(python: str, script: str, arguments: list[str]) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, str(HERE / script), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
    facts: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return facts


def _compare(store_folder: Path, arrow: Path) -> int:
    """Every document of TRL's packs is one of the store's, with the same labels, and the other way round."""
    store = TokenStore(store_folder)
    ours: Counter[bytes] = Counter()
    for number in range(len(store)):
        document = store.document(number)
        trained = np.repeat(np.arange(len(document.mask_runs)) % 2 == 1, document.mask_runs)
        ids = document.input_ids.astype(np.int64)
        if len(ids) <= MAX_LENGTH:
            ours[ids.tobytes() + np.where(trained, ids, -100).tobytes()] += 1
    theirs: Counter[bytes] = Counter()
    table = pa.ipc.open_file(pa.memory_map(str(arrow))).read_all()
    for pack in table.to_batches():
        for ids, labels, lengths in zip(*(pack.column(name) for name in pack.schema.names), strict=True):
            borders = np.cumsum([0, *lengths.as_py()])
            all_ids, all_labels = (np.array(part.as_py(), np.int64) for part in (ids, labels))
            for start, end in pairwise(borders.tolist()):
                theirs[all_ids[start:end].tobytes() + all_labels[start:end].tobytes()] += 1
    longer = {key for key in theirs if len(key) == 2 * 8 * MAX_LENGTH}  # cut by TRL
    differing = [key for key in (ours - theirs) + (theirs - ours) if key not in longer]
    if differing:
        raise SystemExit(f"{len(differing)} documents differ between TRL and shardtune")
    return ours.total()


def _print(results: list[dict[str, Any]], rows: int) -> None:
    print(f"{rows:,} chats; CPU seconds, medians; documents and labels equal in every case")
    print("| case | TRL 1.16 | shardtune | ratio | whole prepare | bare encode_batch_fast | ratio |")
    print("|---|---|---|---|---|---|---|")
    for each in results:
        ours, bare = each["ours_cpu_s"], each["bare_encode_cpu_s"]
        print(
            f"| {each['case']} | {each['trl_cpu_s']:.2f} | {ours:.3f} | {each['trl_cpu_s'] / ours:.1f}× "
            f"| {each['ours_whole_cpu_s']:.2f} | {bare:.2f} | {bare / ours:.1f}× |"
        )


if __name__ == "__main__":
    main()
