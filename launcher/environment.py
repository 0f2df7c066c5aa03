"""The environment of jobs and libraries. The only file of the launcher that writes it."""

import os


def rank_environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that `sft.world` reads, and a fair share of the cores."""
    defaults = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), "TOKENIZERS_PARALLELISM": "false"}
    return {
        **defaults,
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONUNBUFFERED": "1",
    }


def quiet_libraries() -> None:
    """Keep the console for what shardtune says; whoever sets these variables decides otherwise."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def go_offline() -> None:
    """Whatever asks the hub from now on gets what is in the cache, at once; ranks and actors inherit it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
