"""Wait until all nodes of a Ray cluster have joined: `python -m launcher.ray_nodes N --seconds 300`, at RAY_ADDRESS.

`ray start` returns before a node has joined, and a node that never does would be missed by nobody.
"""

import argparse
import os
import socket
import sys
import time


def wait_for_nodes(count: int, seconds: float) -> str | None:
    """Wait; returns what is wrong, or None when all are there.

    Args:
        count: nodes, the head among them.
        seconds: as long as that.
    """
    import ray

    address = os.environ["RAY_ADDRESS"]
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), 5).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                return f"Ray's head does not answer at {address} after {seconds:g} s ({error})"
            time.sleep(0.5)
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    try:
        while True:
            alive = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
            if len(alive) >= count:
                return None
            if time.monotonic() > deadline:
                return f"{len(alive)} of {count} nodes joined Ray within {seconds:g} s: {', '.join(sorted(alive))}"
            time.sleep(0.5)
    finally:
        ray.shutdown()


def main() -> None:
    """Exits with 1 when nodes are missing."""
    parser = argparse.ArgumentParser(prog="python -m launcher.ray_nodes")
    parser.add_argument("count", type=int)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if wrong := wait_for_nodes(options.count, options.seconds):
        sys.exit(f"error: {wrong}")


if __name__ == "__main__":
    main()
