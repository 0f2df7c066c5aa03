"""A run that takes seconds: small chats, a small model, two ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launcher.chains import GOLDEN

RECIPE = """\
name: tiny
runs: {folder}/runs
model:
  config: {{architecture: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
           num_key_value_heads: 2, max_position_embeddings: 256, attention_dropout: 0.1, tie_word_embeddings: true}}
data:
  sources: [{{path: {chats}}}]
  tokenizer: {{vocab_size: 400}}
  max_length: 256
  validation: {{fraction: 0.1}}
train:
  packs_per_step: 6
  max_steps: 8
  learning_rate: 1.0e-2
evaluate: {{every: 4, samples: ["Count to 3 and name a colour."], max_new_tokens: 8}}
checkpoint: {{every: 4, keep_last: 3}}
"""


@pytest.fixture
def recipe(tmp_path: Path, chat_file: Path) -> Path:
    """The YAML of a run below `tmp_path`."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(folder=tmp_path, chats=chat_file), encoding="utf-8")
    return path


@pytest.fixture
def is_golden(pytestconfig: pytest.Config) -> Callable[[str, str], None]:
    """Compares a text with that of a golden file, or writes it anew."""

    def compare(file: str, text: str) -> None:
        if pytestconfig.getoption("--update-golden"):
            (GOLDEN / file).write_text(text, "utf-8")
        assert text == (GOLDEN / file).read_text("utf-8")

    return compare
