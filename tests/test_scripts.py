"""Every script of the shell is one for bash, and one that shellcheck has nothing to say about."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*(ROOT / "slurm").rglob("*.sh"), *(ROOT / "docker").rglob("*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(ROOT)))
def test_bash_reads_it(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_has_nothing_to_say() -> None:
    assert len(SCRIPTS) > 5
    if shutil.which("shellcheck") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("shellcheck is missing: run slurm/devcluster/install.sh as root")
        pytest.skip("shellcheck is missing: run slurm/devcluster/install.sh as root")
    command = ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR", *map(str, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
