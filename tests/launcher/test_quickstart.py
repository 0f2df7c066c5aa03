"""The embedded default, shortened, on a machine without a compiler."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_quickstart_runs_offline_without_a_compiler(tmp_path: Path) -> None:
    (tmp_path / "no-tools").mkdir()
    command = [
        *(sys.executable, "-m", "launcher", "quickstart", f"runs={tmp_path}"),
        *("train.max_steps=6", "data.max_length=256"),
        *("evaluate.every=3", "evaluate.max_new_tokens=8", "data.validation.fraction=0.002", "--ranks", "2", "--json"),
    ]
    environment = {"PATH": str(tmp_path / "no-tools"), "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout.splitlines()[-1])
    assert {"prepare", "plan", "train", "export", "generate", "run", "model", "report"} <= set(facts)
    assert facts["prepare"]["rows_in"] > 5_000
    assert facts["train"]["step"] == 6
    assert facts["train"]["validation_loss"] < 7.6
    assert Path(facts["report"]).read_text(encoding="utf-8").count("<h3>") == 3
    for told in ("before training", "after training", "Try next", facts["model"]):
        assert told in done.stderr
