"""The documentation does what it says: its commands run, and it names every setting."""

import os
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from safetensors.numpy import save
from transformers import SmolLM3Config

from data_tools.config import DataConfig, Section, SourceConfig, TokenizerTraining, ValidationConfig
from data_tools.plan import PackPlan
from data_tools.store import TokenStore
from launcher.cluster import (
    ClusterConfig,
    ContainerConfig,
    EnvironmentConfig,
    PrepareConfig,
    RayConfig,
    RequeueConfig,
)
from launcher.config import RunConfig
from sft.config import ScheduleConfig, TrainConfig, ZeroConfig
from sft.config_model import LoraConfig, ModelConfig
from sft.config_watch import CheckpointConfig, EarlyStoppingConfig, EvaluateConfig
from tests.data_tools.hub_server import Repository, serving

ROOT = Path(__file__).parent.parent
SMOLTALK2 = ROOT / "docs" / "preparing_smoltalk2.md"
SECONDS = 300
"""Longer than any command takes on a busy machine: without a limit, one that hangs would hang the suite."""


def bash_blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


class Shell:
    """One bash for all blocks of a page, as a reader would use it; it stops at the first command that fails."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._log = log
        with open(log, "wb") as said:
            self._bash = subprocess.Popen(
                ["bash", "-eu"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, cwd=ROOT, env=environment
            )

    def run(self, block: str) -> str:
        """Run a block to its end and return what it printed."""
        assert self._bash.stdin is not None and self._bash.stdout is not None
        self._bash.stdin.write(f"{block}\necho '<end of block>'\n".encode())
        self._bash.stdin.flush()
        said = b""
        while not said.endswith(b"<end of block>\n"):
            ready, _, _ = select.select([self._bash.stdout], [], [], SECONDS)
            part = os.read(self._bash.stdout.fileno(), 2**16) if ready else b""
            assert part, f"{block}\n{said.decode()}\n{self._log.read_text(encoding='utf-8')}"
            said += part
        return said.decode()

    def close(self) -> None:
        """End bash and whatever it waits for."""
        self._bash.kill()
        self._bash.communicate()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "RAY_"))}
    environment |= {
        "SHARED": str(tmp_path / "shared"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    shell = Shell(environment, tmp_path / "stderr")
    yield shell
    shell.close()


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_page_on_smoltalk2_runs_as_it_stands(shell: Shell, real_data: Path, tmp_path: Path) -> None:
    """Against a hub on loopback with a small copy of the data set, which stops listening once all is fetched."""
    # Nothing on the page loads weights: a configuration that plans can ask, and a file that can be fetched.
    SmolLM3Config(max_position_embeddings=65_536).save_pretrained(tmp_path / "model")
    weights = {"model.safetensors": save({"weight": np.zeros(1, np.float32)})}
    model = Repository(
        {"c" * 40: files(tmp_path / "model") | weights, "d" * 40: {"README.md": b"the weights are in branches"}}
    )
    model.tags["it-mid-training"] = "c" * 40
    repositories = {
        "datasets/HuggingFaceTB/smoltalk2": Repository({"a" * 40: files(real_data / "smoltalk2_mini")}),
        "models/HuggingFaceTB/SmolLM3-3B": Repository({"b" * 40: files(real_data / "tokenizers" / "smollm3")}),
        "models/HuggingFaceTB/SmolLM3-3B-checkpoints": model,
    }
    names, fetch, *rest = bash_blocks(SMOLTALK2)
    with serving(repositories) as hub:
        shell.run(f"export HF_ENDPOINT={hub.url}\n{names}")
        assert "27 of 27 inputs are from the hub" in shell.run(fetch)
    said = [shell.run(block) for block in rest]

    assert "everything is still as it was fetched" in said[0]
    run = tmp_path / "shared" / "runs" / "smollm3-sft"
    store = TokenStore(run / "tokens")
    assert [source["name"] for source in store.manifest["sources"]] == recipe_splits()
    totals = store.manifest["totals"]
    assert totals["rows_in"] == totals["rows_out"] == 5719
    assert (run / "tokens" / "rejects.jsonl").read_bytes() == b""
    assert (run / "look.html").exists()
    plan = PackPlan(run / "plan")
    assert plan.settings.max_length == 16_384 and len(plan.train) > 0
    assert sum(source["documents"] for source in plan.facts["sources"]) == 5719
    part = TokenStore(run.parent / "part" / "tokens").manifest["sources"]
    assert [source["name"] for source in part] == ["s1k_1.1_think", "table_gpt_no_think"]


def recipe_splits() -> list[str]:
    text = (ROOT / "configs" / "recipes" / "smollm3_sft.yaml").read_text(encoding="utf-8")
    return re.findall(r"split: ([\w.]+)", text)


SECTIONS: dict[type[Section], tuple[str, str]] = {
    DataConfig: ("data.md", ""),
    SourceConfig: ("data.md", ""),
    ValidationConfig: ("data.md", "validation."),
    TokenizerTraining: ("data.md", "tokenizer."),
    ModelConfig: ("training.md", "model."),
    LoraConfig: ("training.md", "model.lora."),
    TrainConfig: ("training.md", "train."),
    ScheduleConfig: ("training.md", "train.schedule."),
    ZeroConfig: ("training.md", "train.zero."),
    EvaluateConfig: ("training.md", "evaluate."),
    EarlyStoppingConfig: ("training.md", "evaluate.early_stopping."),
    CheckpointConfig: ("training.md", "checkpoint."),
    ClusterConfig: ("launching_slurm.md", ""),
    EnvironmentConfig: ("launching_slurm.md", "environment."),
    ContainerConfig: ("launching_slurm.md", "container."),
    PrepareConfig: ("launching_slurm.md", "prepare."),
    RayConfig: ("launching_slurm.md", "ray."),
    RequeueConfig: ("launching_slurm.md", "requeue."),
}
"""Of every section its page, and what stands before the names of its settings there."""


@pytest.mark.parametrize("section", SECTIONS)
def test_the_reference_names_every_setting_and_its_default(section: type[Section]) -> None:
    page, prefix = SECTIONS[section]
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    rows = {name: line for line in text.splitlines() if line.startswith("| `") for name in [line.split("`")[1]]}
    for name, setting in section.model_fields.items():
        if (type(setting.default) in SECTIONS and page != "data.md") or name == "container":
            continue  # its settings have rows of their own
        row = rows[prefix + name]
        if isinstance(setting.default, str | int | float) and not isinstance(setting.default, bool):
            assert f"`{setting.default}`" in row.split("|")[2], row


def test_no_section_of_a_run_is_left_out() -> None:
    found, waiting = set(), [RunConfig]
    while waiting:
        section = waiting.pop()
        found.add(section)
        waiting += [inner for field in section.model_fields.values() for inner in sections_in(field.annotation)]
    assert found - {RunConfig} == set(SECTIONS)


def sections_in(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in sections_in(argument)]
