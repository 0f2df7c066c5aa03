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


_PASSED_ON = (
    *("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ENDPOINT", "XDG_CACHE_HOME", "PYTHONPATH"),
    *("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_CONFIG_FILE"),
    *("WANDB_ENTITY", "WANDB_PROJECT", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"),
)
"""Variables of who launches that jobs elsewhere get as well: places and names, never a key or a token."""


def variables_passed_on() -> tuple[tuple[str, str], ...]:
    """Those of `_PASSED_ON` that are set here."""
    return tuple((name, value) for name in _PASSED_ON if (value := os.environ.get(name)))


def quiet_libraries() -> None:
    """Keep the console for what shardtune says; whoever sets these variables decides otherwise."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def go_offline() -> None:
    """Whatever asks the hub from now on gets what is in the cache, at once; ranks and actors inherit it."""
    os.environ["HF_HUB_OFFLINE"] = "1"
