"""Training steps against TRL's SFTTrainer: the same packs, weights, optimizer and dtype; CPU seconds and peak memory.

    python -m tests.benchmarks.step --peer PYTHON_WITH_TRL [--steps 20] [--cases NAME …] [--json FILE]

SHARDTUNE_REAL_DATA names the folder with tokenizers and data sets. Both train in processes of their own, one thread
each, one pack a step; the first two steps are not counted. Fails when losses differ by more than 1e-4.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from data_tools.config import DataConfig
from data_tools.plan import PlanSettings, make_plan
from data_tools.prepare import prepare
from sft.batches import make_batch
from tests.benchmarks.chats import write_chats

HERE = Path(__file__).parent
NOT_COUNTED = 2

SHAPES = {
    "SmolLM2-135M": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "4 layers": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
"""With SmolLM2's vocabulary of 49,152."""

CASES = {
    "SmolLM2-135M, 2,048": ("SmolLM2-135M", 2048),
    "SmolLM2-135M, 4,096": ("SmolLM2-135M", 4096),
    "4 layers, 2,048": ("4 layers", 2048),
    "4 layers, 4,096": ("4 layers", 4096),
}


def main() -> None:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", required=True, help="the Python of an environment with TRL 1.16")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="shardtune-steps-"))
    print(f"{options.steps} steps of one pack; tokens a CPU second (median), peak memory of the process")
    print("| case | TRL 1.16 | shardtune | ratio | TRL GiB | shardtune GiB | ratio | largest difference of losses |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    results = []
    try:
        for name in options.cases:
            each = _case(name, *CASES[name], steps=options.steps, folder=folder, peer=options.peer)
            print(
                f"| {each['case']} | {each['trl']['tokens_per_second']:.0f} | {each['ours']['tokens_per_second']:.0f} "
                f"| {each['speed']:.2f}× | {each['trl']['peak_gib']:.2f} | {each['ours']['peak_gib']:.2f} "
                f"| {each['memory']:.2f} | {each['loss_difference']:.1e} |",
                flush=True,
            )
            results.append(each)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(folder)


def _case(name: str, shape: str, length: int, steps: int, folder: Path, peer: str) -> dict[str, Any]:
    packs, store = _packs(folder, length, steps)
    model = folder / shape
    if not model.exists():
        torch.manual_seed(0)
        sizes = SHAPES[shape]
        LlamaForCausalLM(LlamaConfig(vocab_size=49152, tie_word_embeddings=True, **sizes)).save_pretrained(model)
    ours = _run(sys.executable, "ours_step.py", [str(model), str(store), str(steps)])
    trl = _run(peer, "trl_step.py", [str(model), str(packs), str(steps)])
    difference = max(abs(a - b) for a, b in zip(ours["losses"], trl["losses"], strict=True))
    if difference > 1e-4:
        raise SystemExit(f"{name}: losses differ by {difference}\nours {ours['losses']}\nTRL  {trl['losses']}")
    return {
        "case": name,
        "ours": ours,
        "trl": trl,
        "speed": ours["tokens_per_second"] / trl["tokens_per_second"],
        "memory": ours["peak_gib"] / trl["peak_gib"],
        "loss_difference": difference,
    }


def _packs(folder: Path, length: int, steps: int) -> tuple[Path, Path]:
    """The packs as our plan, and as the table that TRL's own packing would have made of them."""
    data = Path(os.environ["SHARDTUNE_REAL_DATA"])
    store_folder, table_file = folder / f"tokens-{length}", folder / f"packs-{length}.parquet"
    if table_file.exists():
        return table_file, store_folder
    chats = write_chats(data / "datasets", 600, folder / "chats.jsonl")
    config = {
        "sources": [{"path": str(chats)}],
        "tokenizer": str(data / "tokenizers" / "smollm2"),
        "chat_template": "chatml",
        "actors": 0,
    }
    store = prepare(DataConfig.model_validate(config), store_folder)
    plan = make_plan(store, PlanSettings(length, "drop", 0.0, 1, 0), store_folder / "plan")
    rows = []
    for step in range(steps):
        batch = make_batch(store, plan.train, plan.packs_of_step(step))
        labels = torch.full_like(batch.input_ids, -100)
        labels[0, batch.targets.places + 1] = batch.targets.labels  # TRL shifts
        lengths = torch.diff(batch.borders).tolist()
        rows.append({"input_ids": batch.input_ids[0].tolist(), "labels": labels[0].tolist(), "seq_lengths": lengths})
    pq.write_table(pa.Table.from_pylist(rows), table_file)
    return table_file, store_folder


def _run(python: str, script: str, arguments: list[str]) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run(
        [python, str(HERE / script), *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    seconds = facts["seconds"][NOT_COUNTED:]
    rates = [tokens / each for tokens, each in zip(facts["tokens"][NOT_COUNTED:], seconds, strict=True)]
    return {**facts, "tokens_per_second": statistics.median(rates)}


if __name__ == "__main__":
    main()
