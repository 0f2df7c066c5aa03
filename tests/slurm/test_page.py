"""The page about Slurm does what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.slurm.test_chain import Site, site
from tests.test_docs import ROOT, bash_blocks

__all__ = ["site"]  # the fixture

PAGE = ROOT / "docs" / "launching_slurm.md"


def test_every_command_of_the_page(site: Site) -> None:
    profile = Path(site.environment["XDG_CONFIG_HOME"]) / "shardtune" / "clusters" / "my-site.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text(yaml.safe_dump({"nodes": 2, "cpus_per_rank": 1, "prepare": {"cpus": 1}}), "utf-8")
    config = yaml.safe_load(site.write("mine").read_text("utf-8"))
    del config["cluster"]
    (site.folder / "run.yaml").write_text(yaml.safe_dump(config), "utf-8")
    (site.folder / "slurm").symlink_to(ROOT / "slurm")
    programs = site.folder / "bin"
    programs.mkdir()
    for name, module in (("shardtune", "launcher"), ("python", None)):
        command = f'exec {sys.executable} {f"-m {module} " if module else ""}"$@"'
        (programs / name).write_text(f"#!/bin/sh\nexport PYTHONPATH={ROOT}\n{command}\n")
        (programs / name).chmod(0o755)
    environment = {**site.environment, "PATH": f"{programs}:{site.environment['PATH']}"}
    said = ""
    for block in bash_blocks(PAGE):
        if "shardtune cancel" in block:  # what the page submitted before must be there to be looked at
            jobs = json.loads((site.folder / "runs" / "mine" / "jobs" / "jobs.json").read_text("utf-8"))["jobs"]
            site.wait(jobs[0]["id"])
        if "salloc" in block:
            site.shardtune("prepare", site.folder / "runs" / "mine")
        done = subprocess.run(
            ["bash", "-eu", "-c", block],
            cwd=site.folder,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, block + done.stdout + done.stderr + site.logs()
        said += done.stdout + done.stderr
    assert "2 nodes met and added up a tensor" in said
    assert "#SBATCH --signal=B:USR1@300" in said
    assert "prepared 300 of 300 rows" in said
    assert "the ranks ended with 0" in said
    assert {path.name for path in (site.folder / "runs").glob("mine-*")} == {"mine-0", "mine-1"}


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "configs" / "clusters").glob("*.yaml")))
def test_shipped_profiles_render(profile: str, site: Site) -> None:
    done = site.shardtune("launch", site.write("any"), "--on", "slurm", "--dry-run", "--profile", profile)
    assert "#SBATCH" in done.stdout
    assert "nothing was submitted" in done.stdout
