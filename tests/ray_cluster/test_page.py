"""The page about Ray does what it says, up to where a cloud would be asked for machines."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.ray_cluster.conftest import RayCluster
from tests.ray_cluster.test_jobs import write_config
from tests.test_docs import ROOT, bash_blocks

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "launching_ray.md"


def test_every_command_of_the_page(ray_cluster: RayCluster, tmp_path: Path) -> None:
    config = yaml.safe_load(write_config(tmp_path, ray_cluster, "mine", max_steps=4).read_text("utf-8"))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config), "utf-8")
    said = "".join(shell(block, ray_cluster, tmp_path) for block in bash_blocks(PAGE))
    assert "prepared 300 of 300 rows" in said
    assert "exported" in said
    assert (tmp_path / "runs" / "mine" / "model" / "model.safetensors").exists()


def test_the_profile_of_a_cloud_renders(ray_cluster: RayCluster, tmp_path: Path) -> None:
    text = PAGE.read_text("utf-8")
    profile = tmp_path / ".config" / "shardtune" / "clusters" / "cloud.yaml"
    profile.parent.mkdir(parents=True)
    (written,) = (block for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.M | re.S) if "cloud.yaml" in block)
    profile.write_text(written, "utf-8")
    commands = re.search(r"^```\n(\(umask.*?)^```$", text, re.M | re.S)
    assert commands is not None
    token, render, up, *_ = commands[1].splitlines()
    shell(f"{token}\n{render}", ray_cluster, tmp_path)
    assert up == "ray up ray-aws.yaml"
    machines = yaml.safe_load((tmp_path / "ray-aws.yaml").read_text("utf-8"))
    assert machines["max_workers"] == 4
    assert "p5.48xlarge" in str(machines)
    token_file = tmp_path / ".ray" / "auth_token"
    assert len(token_file.read_text("utf-8").strip()) == 64
    assert token_file.stat().st_mode & 0o77 == 0


def shell(block: str, cluster: RayCluster, folder: Path) -> str:
    """Run a block of the page in a folder that is its user's home; returns what it said."""
    program = folder / "bin" / "shardtune"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m launcher "$@"\n', "utf-8")
    program.chmod(0o755)
    environment = {**cluster.environment, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / ".config")}
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-eux", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
