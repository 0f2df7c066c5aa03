"""What Ray's Jobs API is asked for: as the golden files, one command to the shell that runs it, nothing secret."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_tools.errors import UserError
from launcher.backends.ray_jobs import render, request
from launcher.cluster import ClusterConfig
from launcher.environment import variables_passed_on
from tests.launcher.chains import HOSTILE, chain

CASES: dict[str, dict[str, Any]] = {
    "shared_folder": {"nodes": 2, "variables": {"NOTE": "it's $(here); `now`"}, "network": "efa"},
    "object_store": {
        "nodes": 4,
        "gpus_per_node": 8,
        "ray": {"storage": "s3://bucket/runs", "python": "/opt/tune/python"},
    },
    "other_folder": {"ray": {"runs": "/lustre/my runs"}},
}


@pytest.mark.parametrize("name", CASES)
def test_a_request_is_that_of_the_golden_file(name: str, is_golden: Callable[[str, str], None]) -> None:
    files = render(chain(ClusterConfig.model_validate(CASES[name])))
    ((file, text),) = set(files.values())  # one job does all stages
    assert file == "ray-job.json"
    is_golden(f"ray_job_{name}.json", text)


def test_a_sweep_is_refused() -> None:
    with pytest.raises(UserError, match="--sweep needs a scheduler with arrays"):
        request(chain(ClusterConfig(), runs=2))


@settings(max_examples=100, deadline=None)
@given(values=st.lists(HOSTILE, min_size=3, max_size=3))
def test_nothing_in_the_settings_runs(values: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ray gives the entrypoint to a shell, in which it is one command of the words that were configured."""
    python, runs, value = values
    try:
        cluster = ClusterConfig.model_validate({"ray": {"python": python, "runs": runs}, "variables": {"NOTE": value}})
    except ValidationError:
        return
    asked = request(chain(cluster))
    folder = tmp_path_factory.mktemp("hostile")
    script = f"set -- {asked['entrypoint']}\nprintf '%s\\0' \"$@\""
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=folder, capture_output=True, check=True, env={"PATH": "/nowhere"}
    )
    words = done.stdout.decode("utf-8").split("\0")[:-1]
    assert words[:2] == [python, "-m"]
    assert words[words.index("--runs") + 1] == runs
    assert words[-2:] == ["--stages", "prepare,train,export"]
    assert done.stderr == b"" and not list(folder.iterdir())
    assert asked["runtime_env"]["env_vars"]["NOTE"] == value


def test_what_is_secret_stays_with_who_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "planted-5ecret")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    text = json.dumps(request(chain(ClusterConfig(), variables=variables_passed_on(places=True, contained=False))))
    assert "mine" in text and "5ecret" not in text
