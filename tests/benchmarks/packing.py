"""How fast and full packing is, how equal the work of ranks is, and how fast packs are read.

    python -m tests.benchmarks.packing [--json FILE] [--peer PYTHON] [--small]

`--peer` is the Python of an environment with TRL, whose packing runs on the same lengths. Times are CPU seconds.
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from data_tools.balance import ATTENTION_COST, costliest_first, imbalance, order_of_epoch
from data_tools.packing import Packs, pack_documents
from data_tools.plan import PlanSettings, make_plan
from data_tools.store import TokenStore, write_arrow, write_manifest
from sft.batches import lay_out, make_batch, read_pack
from tests.stores import random_documents, write_store

Lengths = NDArray[np.int32]

PEER = """
import json, sys, time
import numpy as np, pyarrow as pa, datasets
from trl.data_utils import pack_dataset
datasets.disable_progress_bars()
lengths, capacity = np.load(sys.argv[1]), int(sys.argv[2])
offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
rows = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(offsets[-1], np.int32)))
dataset = datasets.Dataset(pa.table({"input_ids": rows}))
started = time.process_time()
packed = pack_dataset(dataset, capacity, "bfd", {"keep_in_memory": True})
print(json.dumps({"seconds": time.process_time() - started, "packs": len(packed)}))
"""


def lognormal(mean: float, deviation: float, capacity: int) -> Callable[[int, np.random.Generator], Lengths]:
    return lambda count, random: np.clip(random.lognormal(mean, deviation, count), 20, capacity).astype(np.int32)


def short_and_long(count: int, random: np.random.Generator) -> Lengths:
    """One document in forty has 16k to 131k tokens."""
    return np.concatenate(
        [lognormal(6.0, 0.9, 8192)(count - count // 41, random), random.integers(16_000, 131_072, count // 41)]
    ).astype(np.int32)


DISTRIBUTIONS: dict[str, tuple[Callable[[int, np.random.Generator], Lengths], int]] = {
    "lognormal(6.5, 1.3), 4,096": (lognormal(6.5, 1.3, 4096), 4096),
    "lognormal(6.5, 1.3), 32,768": (lognormal(6.5, 1.3, 32_768), 32_768),
    "short + 16k to 131k, 131,072": (short_and_long, 131_072),
    "lognormal(7.2, 1), 4,096": (lognormal(7.2, 1.0, 4096), 4096),
    "uniform(100, 4,000), 8,192": (lambda n, random: random.integers(100, 4000, n).astype(np.int32), 8192),
}
"""What makes lengths, and the capacity of a pack."""


def packing(name: str, count: int) -> dict[str, Any]:
    """Speed, memory and fill."""
    make, capacity = DISTRIBUTIONS[name]
    lengths = make(count, np.random.default_rng(0))
    started = time.process_time()
    packs = pack_documents(lengths, capacity)
    seconds = time.process_time() - started
    tracemalloc.start()
    pack_documents(lengths, capacity)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    fewest = math.ceil(int(lengths.sum(dtype=np.int64)) / capacity)
    return {
        "lengths": name,
        "documents": count,
        "seconds": seconds,
        "bytes_per_document": peak / count,
        "packs": len(packs),
        "more_than_fewest": len(packs) / fewest - 1,
    }


def beside_peer(python: str, name: str, count: int) -> dict[str, Any]:
    """TRL's best-fit packing of the same lengths; it moves the tokens too, which a plan needs not."""
    make, capacity = DISTRIBUTIONS[name]
    lengths = make(count, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/lengths.npy", lengths)
        command = [python, "-c", PEER, f"{folder}/lengths.npy", str(capacity)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    peer = json.loads(done.stdout.splitlines()[-1])
    times = []
    for _ in range(5):
        started = time.process_time()
        packs = pack_documents(lengths, capacity)
        times.append(time.process_time() - started)
    ours = float(np.median(times))
    return {
        "lengths": name,
        "documents": count,
        "seconds": ours,
        "packs": len(packs),
        "peer_seconds": peer["seconds"],
        "peer_packs": peer["packs"],
        "times_faster": peer["seconds"] / ours,
    }


def balance(name: str, ranks: int, steps: int) -> dict[str, Any]:
    """Mean / max of the cost over ranks in every micro-step; steps of one pack a rank, the hardest case."""
    make, capacity = DISTRIBUTIONS[name]
    random = np.random.default_rng(0)
    mean = float(make(100_000, random).mean())
    lengths = make(int(steps * ranks * capacity / mean), random)
    packs = pack_documents(lengths, capacity)
    costs = _costs(packs, lengths)
    ours = order_of_epoch(costs, ranks, seed=0, epoch=0)
    chance = random.permutation(len(packs))
    complete = len(packs) // ranks * ranks

    def efficiency(order: NDArray[np.int64]) -> float:
        return 1 - imbalance(costs, costliest_first(order[:complete].reshape(-1, ranks), costs), ranks, 1)

    return {
        "lengths": name,
        "ranks": ranks,
        "documents": len(lengths),
        "packs": len(packs),
        "complete_steps": complete // ranks,
        "random_order": efficiency(chance),
        "ours": efficiency(ours),
    }


def _costs(packs: Packs, lengths: Lengths) -> NDArray[np.float64]:
    of_document = lengths.astype(np.int64)
    costs: NDArray[np.float64] = packs.sums(of_document) + ATTENTION_COST * packs.sums(of_document**2)
    return costs


def planning(count: int) -> dict[str, Any]:
    """A whole plan from an index of many documents: mixture, packing, files."""
    random = np.random.default_rng(0)
    index = {
        "length": lognormal(6.5, 1.3, 4096)(count, random),
        "trained": np.full(count, 10, np.int32),
        "weight": np.full(count, 10, np.float32),
        "source": np.sort(random.integers(0, 25, count)).astype(np.int16),
        "digest": (digests := random.integers(0, 2**64, count, dtype=np.uint64)),
        "conversation": digests,
    }
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "tokens", random_documents([10], 0), [0], [0])
        store.manifest["sources"] = [{"name": str(number), "configured": number} for number in range(25)]
        store._first_documents = [0, count]
        vars(store)["index"] = index
        settings = replace(PlanSettings(4096, "drop", 0.01, 128, 0), deduplicate=True)
        started = time.process_time()
        plan = make_plan(store, settings, Path(folder) / "plan")
        seconds = time.process_time() - started
        size = sum(path.stat().st_size for path in plan.folder.iterdir())
    return {"documents": count, "seconds": seconds, "plan_bytes_per_document": size / count}


def reading(count: int) -> dict[str, Any]:
    """Microseconds for a pack of 4,096 tokens in about 13 documents: its documents, with ids, borders and labels
    and their places as arrays, and as a batch of tensors with positions and sources.
    """
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(5.4, 0.8, count), 8, 4096).astype(int).tolist()
    with tempfile.TemporaryDirectory() as folder:
        store = write_store(Path(folder) / "tokens", random_documents(lengths, 0), [0] * count, [0])
        table = make_plan(store, PlanSettings(4096, "drop", 0.0, 8, 0), Path(folder) / "plan").train
        order = random.permutation(len(table))

        def with_labels(packs: NDArray[np.int64]) -> object:
            ids, places, weights, borders = lay_out(read_pack(store, table, int(packs[0])))
            return ids, places, ids.take(places + 1), weights, borders

        def microseconds(read: Callable[[NDArray[np.int64]], object]) -> float:
            times = []
            for _ in range(5):
                started = time.process_time()
                for pack in order:
                    read(np.array([pack]))
                times.append(time.process_time() - started)
            return min(times) / len(order) * 1e6

        return {
            "documents_per_pack": len(table.packs.documents) / len(table),
            "microseconds_documents": microseconds(lambda packs: read_pack(store, table, int(packs[0]))),
            "microseconds_arrays": microseconds(with_labels),
            "microseconds_batch": microseconds(lambda packs: make_batch(store, table, packs)),
        }


def opening(tokens: int) -> dict[str, Any]:
    """Seconds to open a store of so many tokens in documents of 512, and to read its index and a first document."""
    rows = 2**14
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tokens"
        store = write_store(folder, random_documents([512] * rows, 0), [0] * rows, [0])
        path = folder / store.manifest["shards"][0]["file"]
        shard, index = pa.ipc.open_file(path).read_all(), pa.ipc.open_file(folder / "index.arrow").read_all()
        times, documents = tokens // 512 // rows, 0
        many = []
        for number in range(8):
            file = f"{path.parent.name}/many-{number}.arrow"
            batches = [shard.to_batches()[0]] * (times // 8)
            write_arrow(folder / file, shard.schema, batches)
            many.append({"file": file, "documents": rows * len(batches), "blake3": ""})
            documents += rows * len(batches)
        batch = pa.Table.from_batches(index.to_batches() * (documents // rows)).combine_chunks().to_batches()[0]
        write_arrow(folder / "index.arrow", index.schema, [batch])
        write_manifest(folder, {**store.manifest, "shards": many})
        started = time.process_time(), time.perf_counter()
        opened = TokenStore(folder)
        length = int(opened.index["length"][-1]) + len(opened.document(len(opened) - 1).input_ids)
        cpu, wall = time.process_time() - started[0], time.perf_counter() - started[1]
        assert length == 2 * 512 and len(opened) == documents
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"documents": documents, "tokens": documents * 512, "bytes": size, "cpu_seconds": cpu, "wall_seconds": wall}


def main() -> None:
    """Run everything, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Packing, balance and reading.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", help="the Python of an environment with TRL")
    parser.add_argument("--small", action="store_true", help="a hundredth of the documents, no 1,024 ranks")
    options = parser.parse_args()
    scale = 100 if options.small else 1
    names, ranks = list(DISTRIBUTIONS), (8, 64) if options.small else (8, 64, 1024)
    results: dict[str, list[dict[str, Any]]] = {
        "packing": [packing(name, count // scale) for name in names for count in (100_000, 1_000_000, 10_000_000)],
        "planning": [planning(count // scale) for count in (1_000_000, 10_000_000)],
        "balance": [balance(name, number, steps=100) for name in names for number in ranks],
        "reading": [reading(20_000 // scale)],
        "opening": [opening(10**9 // scale)],
    }
    if options.peer:
        results["peer"] = [beside_peer(options.peer, name, 100_000 // scale) for name in (names[0], names[-1])]
    table = Table("what", "case", "result")
    for what, rows in results.items():
        for row in rows:
            case = ", ".join(_said(key, row[key]) for key in ("lengths", "documents", "ranks") if key in row)
            rest = (_said(key, value) for key, value in row.items() if key not in ("lengths", "documents", "ranks"))
            table.add_row(what, case, ", ".join(rest))
    Console(width=200).print(table)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _said(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{key.replace('_', ' ')} " + (f"{value:,}" if isinstance(value, int) else f"{value:.5g}")


if __name__ == "__main__":
    main()
