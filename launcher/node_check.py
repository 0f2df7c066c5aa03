"""What a node finds out about itself and its neighbours: `python -m launcher.node_check FOLDER`, one task a node.

Each writes `FOLDER/node-RANK.json`, whatever happens, so that the one that is missing or unlike the others can be
named. Meets the others at MASTER_ADDR:MASTER_PORT, as training does; RANK and NODES (names with commas) are set.
"""

import argparse
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from data_tools.store import write_json

SECONDS = 30
"""For all nodes to meet, and again for what they exchange."""


def look_at_node(folder: Path) -> dict[str, Any]:
    """Facts of this node: clock, room and inodes where the run is written, code, Python, GPUs.

    Args:
        folder: a new folder below the runs, in which who asks has written `asked`.
    """
    room, inodes = shutil.disk_usage(folder), os.statvfs(folder)
    return {
        "host": socket.gethostname(),
        "clock": _clock(folder),
        "sees_folder": (folder / "asked").exists(),
        "free_gb": round(room.free / 1e9, 1),
        "free_inodes": inodes.f_favail if inodes.f_files else None,
        "shm_gb": round(shutil.disk_usage("/dev/shm").free / 1e9, 1) if Path("/dev/shm").exists() else None,
        "python": sys.version.split()[0],
        "code": code_digest(),
        **_gpus(),
    }


def _clock(folder: Path) -> float:
    """Seconds by which the clock of this node is before that of the file system."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock-") as file:
        now = time.time()
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        return now - os.fstat(file.fileno()).st_mtime


def code_digest() -> str:
    """Of all Python files of shardtune, as they are on this node."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for package in ("data_tools", "launcher", "sft"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _gpus() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"gpus": 0, "torch": None}
    facts: dict[str, Any] = {"gpus": torch.cuda.device_count(), "torch": torch.__version__}
    if facts["gpus"]:
        facts |= {"gpu": torch.cuda.get_device_name(0), "cuda": torch.version.cuda, "driver": _driver()}
    return facts


def _driver() -> str | None:
    path = Path("/proc/driver/nvidia/version")
    return path.read_text("utf-8").splitlines()[0] if path.exists() else None


def meet(rank: int, hosts: list[str], address: str, port: int, seconds: float = SECONDS) -> list[str]:
    """Meet the other nodes, connect to the next, and add up a tensor over all; returns what is wrong, by node.

    Args:
        rank: of this node in `hosts`.
        address: where the first of them listens, at `port`.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed import TCPStore  # type: ignore[attr-defined, unused-ignore]

    limit = timedelta(seconds=seconds)
    try:
        store = TCPStore(address, port, is_master=rank == 0, timeout=limit, wait_for_workers=False)
        with socket.create_server(("", 0)) as server:
            store.set(f"port-{rank}", str(server.getsockname()[1]))
            if missing := _missing(store, "port", range(len(hosts)), seconds):
                _leave(store, rank, [each for each in range(len(hosts)) if each not in missing], seconds)
                return [f"{hosts[each]} did not come to {address}:{port} within {seconds:g} s" for each in missing]
            if said := _reach_next(store, rank, hosts, seconds):
                return [said]
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=len(hosts), timeout=limit)
        ones = torch.ones(1 << 20, device="cuda" if backend == "nccl" else "cpu")
        dist.all_reduce(ones)
        if float(ones[0]) != len(hosts):
            return [f"{hosts[rank]}: the sum over {len(hosts)} nodes came out as {float(ones[0]):g}"]
        dist.destroy_process_group()
    except (RuntimeError, OSError) as error:  # torch's errors of connections are RuntimeErrors
        return [f"{hosts[rank]}: {' '.join(str(error).split())[:200]}"]
    return []


def _missing(store: Any, key: str, ranks: Iterable[int], seconds: float) -> list[int]:
    """Wait until all of these ranks have set a key; returns those that have not."""
    deadline = time.monotonic() + seconds
    missing = list(ranks)
    while missing and time.monotonic() < deadline:
        missing = [rank for rank in missing if not store.check([f"{key}-{rank}"])]
        time.sleep(0.1)
    return missing


def _leave(store: Any, rank: int, there: list[int], seconds: float) -> None:
    """The first node keeps the store, and is the last to go."""
    store.set(f"leaves-{rank}", "")
    if rank == 0:
        _missing(store, "leaves", there, seconds)


def _reach_next(store: Any, rank: int, hosts: list[str], seconds: float) -> str | None:
    """Connect to the next node by its name, as NCCL and gloo will."""
    other = (rank + 1) % len(hosts)
    port = int(store.get(f"port-{other}"))
    try:
        socket.create_connection((hosts[other], port), seconds).close()
    except OSError as error:
        return f"{hosts[rank]} cannot reach {hosts[other]}: {error}"
    finally:
        store.set(f"tried-{rank}", "")
    _missing(store, "tried", range(len(hosts)), seconds)  # as long as somebody tries, this node listens
    return None


def main() -> None:
    """Write what was found; the exit code is 0 where a file could be written."""
    parser = argparse.ArgumentParser(prog="python -m launcher.node_check")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rank, hosts = int(os.environ["RANK"]), os.environ["NODES"].split(",")
    facts = look_at_node(folder)
    write_json(folder / f"node-{rank}.json", {**facts, "wrong": [f"{hosts[rank]} did not finish meeting the others"]})
    wrong = meet(rank, hosts, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    write_json(folder / f"node-{rank}.json", {**facts, "wrong": wrong})


if __name__ == "__main__":
    main()
