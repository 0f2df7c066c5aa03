"""One strict YAML: what is wrong is said in one line, with the file, the key and the way out."""

from pathlib import Path

import pytest

from data_tools.errors import UserError
from launcher.config import RunConfig, load_run, save_run

YAML = """\
name: small
model:
  config: {architecture: llama, hidden_size: 64}
data:
  tokenizer: {vocab_size: 400}
  sources:
    - path: "${CHATS:-chats}/a.jsonl"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(YAML, encoding="utf-8")
    return path


def test_defaults_and_overrides(file: Path) -> None:
    config = load_run(str(file), ["train.learning_rate=1e-5", "data.sources.0.split=all", "train.zero.stage=3"])
    assert config.train.learning_rate == 1e-5
    assert config.train.zero.stage == 3
    assert config.data.sources[0].split == "all"
    assert config.folder == Path("runs/small")
    assert config.store == Path("runs/small/tokens")


def test_paths_come_from_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_run(str(file), []).data.sources[0].path == "chats/a.jsonl"
    monkeypatch.setenv("CHATS", "/elsewhere")
    assert load_run(str(file), []).data.sources[0].path == "/elsewhere/a.jsonl"
    with pytest.raises(UserError, match=r"data.store: the environment variable NOT_SET is not set"):
        load_run(str(file), ["data.store=${NOT_SET}/x"])


def test_a_saved_run_loads_from_anywhere_as_the_same_run(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_run(load_run(str(file), []))
    monkeypatch.chdir("/")
    again = load_run(str(tmp_path / "runs" / "small"), [])
    assert again.store == tmp_path / "runs" / "small" / "tokens"
    assert again.data.sources[0].path == str(tmp_path / "chats" / "a.jsonl")
    assert again == RunConfig(**again.model_dump())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.max_lenght=10", "small.yaml: unknown key data.max_lenght; did you mean data.max_length?"),
        ("trian.seed=1", "unknown key trian; did you mean train?"),
        ("data.sources.0.splitt=x", "unknown key data.sources.0.splitt; did you mean data.sources.0.split?"),
        ("data.tokenizer.vocabsize=9", "data.tokenizer.vocabsize; did you mean data.tokenizer.vocab_size?"),
        ("train.zero.stage=4", "train.zero.stage: Input should be 0, 1, 2 or 3 (it is 4)"),
        ("train.schedule.colour=red", "valid keys: name, warmup_ratio, min_ratio"),
        ("data.max_length=many", "data.max_length: Input should be a valid integer"),
        ("model.path=gpt", "model: give either `path` or `config`"),
        ("name=../x", "name: String should match pattern"),
        ("data.sources.5.split=x", "there is no place data.sources.5.split"),
        ("learning_rate", "overrides look like section.key=value"),
        ("train.seed=[1", "is not a YAML value"),
    ],
)
def test_mistakes_are_explained(file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_run(str(file), [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "line 2: `name` is given twice"),
        ("name: [\n", "line 2"),
        ("just text\n", "expected sections"),
        ("name: a\nmodel: {path: x}\n", "data is missing"),
    ],
)
def test_broken_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_run(str(path), [])
    assert message in str(error.value)
    assert str(path) in str(error.value)
