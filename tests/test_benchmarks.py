"""The benchmark for GPUs runs, on a CPU as well."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_gpu_step_measures_steps_and_their_parts() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu_step", "--small", "--steps", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    cases = {case["who"]: case for case in map(json.loads, done.stdout.splitlines())}
    assert cases.keys() == {"ours", "loss head", "attention"}
    assert not [case for case in cases.values() if "error" in case]
    assert cases["ours"]["tokens_per_second"] > 0
    assert {"data", "forward", "backward", "optimizer"} <= cases["ours"]["parts"].keys()
    assert cases["loss head"]["share_of_products"] > 0
    assert cases["attention"]["tflops"] > 0
