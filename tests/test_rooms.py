"""The rooms of the house: launcher → sft → data_tools, and no heavy import where it does not belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "data_tools": {"torch", "deepspeed", "sft", "launcher"},
    "sft": {"ray", "launcher"},
}
ROOMS = ("data_tools", "sft", "launcher")
RAY = {
    "data_tools/actors.py",
    "launcher/backends/ray_jobs.py",
    "launcher/ray_nodes.py",
    "launcher/ray_fetch.py",
    "launcher/ray_train.py",
}
ONLY_IN = {"ray": RAY, "deepspeed": {"sft/engine.py"}}


def imports(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_no_stair_upwards(room: str) -> None:
    assert files(room)
    for path in files(room):
        assert not imports(path) & FORBIDDEN[room], path


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_few_files_know_the_package(package: str) -> None:
    users = {str(path.relative_to(ROOT)) for room in ROOMS for path in files(room) if package in imports(path)}
    assert users == ONLY_IN[package]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("data_tools.packing", {"torch", "ray", "deepspeed", "transformers", "pyarrow"}),
        ("data_tools.plan", {"torch", "ray", "deepspeed", "transformers", "datasets"}),
        ("launcher.cli", {"torch", "ray", "deepspeed", "transformers", "datasets"}),
    ],
)
def test_what_is_light_stays_light(module: str, unwanted: set[str]) -> None:
    script = f"import sys, {module}; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not unwanted & set(loaded.stdout.split())


def test_files_are_short() -> None:
    for room in ROOMS:
        for path in files(room):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path
