"""A chain of jobs to render."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from launcher.cluster import ClusterConfig
from launcher.jobs import STAGES, Chain, jobs_of

GOLDEN = Path(__file__).parent / "golden"

HOSTILE = st.text(st.sampled_from("a9'\"\\\n;$(){}|&<>`# \t*?~%!é\u2028\x00-=,:/"), min_size=1, max_size=20)
"""Texts that mean something to a shell, to YAML or to a scheduler."""


def chain(cluster: ClusterConfig, runs: int = 1, folder: str = "/shared/runs/first", **changes: Any) -> Chain:
    paths = (Path(folder),) if runs == 1 else tuple(Path(f"{folder}-{number}") for number in range(runs))
    values: dict[str, Any] = {
        "name": "first",
        "folder": Path(folder),
        "runs": paths,
        "jobs": jobs_of(cluster, STAGES, runs, lead=300),
        "cluster": cluster,
        "working_folder": Path("/shared/work"),
        "python": "/shared/venv/bin/python",
        "folders": (Path("/shared/tokens"), Path("/shared/runs/first/tokens")),
        "variables": (("HF_HOME", "/shared/hf"),),
        "identity": "0123456789abcdef",
    }
    return Chain(**{**values, **changes})
