"""Run a function of a test module on several gloo ranks, each a process of its own."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SECONDS = 1200
"""Longer than any test takes on a busy machine."""


def run_ranks(ranks: int, function: str, **arguments: Any) -> list[Any]:
    """Call `module:function(world, **arguments)` on every rank and return what each returned (as JSON values)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(ranks):
            environment = {
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": str(ROOT),
                "PYTHONWARNINGS": "ignore",
                "PYTHONFAULTHANDLER": "1",
            }
            command = [sys.executable, "-m", "tests.ranks", function, json.dumps(arguments), f"{folder}/{rank}.json"]
            with Path(f"{folder}/{rank}.log").open("w", encoding="utf-8") as log:  # a full pipe would stop a rank
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
                )
        codes = [process.wait(timeout=SECONDS) for process in processes]
        for rank, code in enumerate(codes):
            output = Path(f"{folder}/{rank}.log").read_text(encoding="utf-8", errors="replace")
            assert code == 0, f"rank {rank} ended with {code}:\n{output[-4000:]}"
        return [json.loads(Path(f"{folder}/{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


def _call(function: str, arguments: str, result: str) -> None:
    import importlib

    from sft.exits import exit_now
    from sft.world import join_world

    module, name = function.split(":")
    world = join_world()
    value = getattr(importlib.import_module(module), name)(world, **json.loads(arguments))
    Path(result).write_text(json.dumps(value), encoding="utf-8")
    world.leave()
    exit_now(0)


if __name__ == "__main__":
    _call(*sys.argv[1:])
