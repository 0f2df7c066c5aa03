"""Code beside weights runs only where the configuration names it."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from data_tools.errors import UserError
from sft.config_model import ModelConfig
from sft.model import load_config, load_model
from sft.own_code import build_model, check_code
from tests.sft.models import tiny_llama

CODE = """\
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path(__file__).parent.joinpath("ran").touch()


class OwnConfig(LlamaConfig):
    model_type = "own_model"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a type that only its folder knows."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    tiny_llama(tied=True).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own_code_of_test.OwnConfig", "AutoModelForCausalLM": "own_code_of_test.OwnForCausalLM"}
    values |= {"model_type": "own_model", "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "own_code_of_test.py").write_text(CODE)
    return folder


def test_it_does_not_run_unasked(own: Path) -> None:
    with pytest.raises(
        UserError, match=r"brings Python code of its own; read it, and set model\.trust_remote_code=true"
    ):
        load_config(ModelConfig(path=str(own)), None, 400, 0)
    assert not list(own.parent.rglob("ran"))


def test_it_runs_where_it_is_named(own: Path) -> None:
    config = ModelConfig(path=str(own), trust_remote_code=True)
    model_config = load_config(config, None, 400, 0)
    model = load_model(config, None, 400, 0, torch.float32, 0)
    assert type(model).__name__ == type(build_model(config, model_config)).__name__ == "OwnForCausalLM"
    ids = torch.arange(9)[None]
    torch.testing.assert_close(model(ids).logits, tiny_llama(tied=True)(ids).logits)
    model.save_pretrained(own.parent / "exported")
    assert (own.parent / "exported" / "own_code_of_test.py").read_text() == CODE


def test_code_of_another_repository_is_refused(own: Path) -> None:
    values = json.loads((own / "config.json").read_text())
    values["auto_map"]["AutoModelForCausalLM"] = "someone/else--modeling.Model"
    (own / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"lies in another repository, someone/else, of which"):
        check_code(ModelConfig(path=str(own), trust_remote_code=True))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"path": "owner/model", "trust_remote_code": True}, "set `revision` to a commit"),
        ({"path": "owner/model", "revision": "main", "trust_remote_code": True}, "set `revision` to a commit"),
        ({"config": {"architecture": "llama"}, "trust_remote_code": True}, "beside weights"),
        ({"config": {"architecture": "llama"}, "lora": {}}, "give `path`"),
        ({"path": "owner/model", "quantize": "nf4"}, "set lora as well"),
    ],
)
def test_settings_that_do_not_belong_together(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelConfig.model_validate(settings)


def test_a_commit_of_the_hub_may_be_trusted() -> None:
    assert ModelConfig(path="owner/model", revision="a" * 40, trust_remote_code=True).trust_remote_code
