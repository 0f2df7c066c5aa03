"""An exported tokenizer is the one of training, or there is no export."""

import json
from pathlib import Path

import pytest

from data_tools.errors import UserError
from data_tools.piece_models import load_piece_tokenizer, save_tokenizer
from sft.export import compare_tokenizers


def test_the_tokenizer_that_transformers_loads_is_compared(real_data: Path, tmp_path: Path) -> None:
    model = real_data / "tokenizers" / "mistral_sentencepiece" / "tokenizer.model"
    tokenizer = load_piece_tokenizer(str(model), model)
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mistral"}))
    compare_tokenizers(tmp_path, tokenizer)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["auto_map"]  # then transformers takes what it finds right for such a model
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="loads the tokenizer as a TokenizersBackend of other ids"):
        compare_tokenizers(tmp_path, tokenizer)
