"""What a run cannot be trained with is refused in one line, before its model is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.errors import UserError
from data_tools.store import TokenStore
from sft.run import TrainingRun
from sft.start import start_session
from sft.world import World
from tests.sft.runs import plan_run

NVME = {"stage": 3, "offload_parameters": "nvme", "nvme_path": "/no/such/disk"}


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"zero": NVME}, r"offloading to nvme needs libaio .*or use cpu|nvme_path: /no/such/disk is no folder"),
        ({"optimizer": "muon", "max_grad_norm": None}, r"train\.optimizer=muon needs the C\+\+ compiler no-compiler"),
        ({"compile": True}, r"train\.compile needs the C\+\+ compiler no-compiler"),
        ({"liger": True}, r"train\.liger: its kernels run on GPUs only"),
        ({"optimizer": "adamw_8bit"}, r"train\.optimizer=adamw_8bit runs on GPUs only"),
    ],
)
def test_a_run_is_refused_before_its_model_is_loaded(
    train: dict[str, Any],
    words: str,
    store: TokenStore,
    chat_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = TrainingRun.open(plan_run(tmp_path / "run", store, chat_file, 1, train=train))
    monkeypatch.setenv("CXX", "no-compiler")
    with pytest.raises(UserError, match=words) as error:
        start_session(run, World(0, 1, torch.device("cpu")), lambda: False)
    assert "\n" not in str(error.value)
    assert not (run.folder / "status.json").exists(), "loading was not begun"
