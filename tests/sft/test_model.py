"""Models that are not what their folder says are refused in a line."""

import json
from pathlib import Path

import pytest
import torch

from data_tools.errors import UserError
from data_tools.tokenizer import load_tokenizer
from sft.config_model import ModelConfig
from sft.model import load_model
from tests.sft.models import tiny_llama


def test_weights_of_other_shapes_are_refused(real_data: Path, tmp_path: Path) -> None:
    model = tiny_llama(tied=True)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 72}))
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / "smollm2"), "chatml")
    with pytest.raises(
        UserError, match=r"mlp\.down_proj\.weight in .* has the shape \[.*\], .* says \[.*72\]"
    ) as error:
        load_model(ModelConfig(path=str(tmp_path)), tokenizer, model.config.vocab_size, 0, torch.float32, 0)
    assert "\n" not in str(error.value)
