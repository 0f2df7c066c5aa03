"""One strict YAML: what is wrong is said in one line, with the file, the key and the way out."""

from pathlib import Path

import pytest

from data_tools.errors import UserError
from launcher.cli import main
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


def test_a_run_that_was_moved_is_found_with_its_store(file: Path, tmp_path: Path) -> None:
    config = load_run(str(file), [f"runs={tmp_path}/runs"])
    save_run(config)
    (tmp_path / "runs" / "small").rename(tmp_path / "renamed")
    moved = load_run(str(tmp_path / "renamed"), [])
    assert moved.folder == tmp_path / "renamed"
    assert moved.store == tmp_path / "renamed" / "tokens"
    another = load_run(str(tmp_path / "renamed"), ["name=another"])
    assert (another.folder, another.store) == (tmp_path / "another", tmp_path / "renamed" / "tokens")


def test_a_configuration_may_be_called_run(file: Path, tmp_path: Path) -> None:
    file.rename(tmp_path / "run.yaml")
    assert load_run(str(tmp_path / "run.yaml"), []).folder == Path("runs/small")


def test_merge_keys_work(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(YAML + "train: &t {seed: 3}\nevaluate: {samples: []}\ncheckpoint: {<<: {every: 7}}\n")
    assert load_run(str(path), []).checkpoint.every == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.max_lenght=10", "small.yaml: unknown key data.max_lenght; did you mean data.max_length?"),
        ("trian.seed=1", "unknown key trian; did you mean train?"),
        ("data.sources.0.splitt=x", "unknown key data.sources.0.splitt; did you mean data.sources.0.split?"),
        ("data.tokenizer.vocabsize=9", "data.tokenizer.vocabsize; did you mean data.tokenizer.vocab_size?"),
        ("train.zero.stage=4", "small.yaml: train.zero.stage needs one of 0, 1, 2, 3, not 4"),
        ("train.schedule.colour=red", "valid keys: name, warmup_ratio, warmup_steps, decay_ratio, min_ratio"),
        ("data.max_length=many", "data.max_length needs a whole number, not many; for example `max_length: 2048`"),
        ("model.path=gpt", "model: give `path` (a model that exists) or `config` (random weights), not both"),
        (
            "name=../x",
            "name needs a text that matches ^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$, not ../x; for example `name: my-run`",
        ),
        ("data.sources.5.split=x", "there is no place data.sources.5.split"),
        ("data.max-length=10", "unknown key data.max-length; did you mean data.max_length?"),
        ("data.maxLength=10", "unknown key data.maxLength; did you mean data.max_length?"),
        ("Train.seed=1", "unknown key Train; did you mean train?"),
        ("data.actors=-1", "data.actors needs a number of at least 0 or auto, not -1"),
        (
            "data.validation=0.1",
            "data.validation needs the keys fraction, count below it, not 0.1; for example `validation: {fra",
        ),
        (
            "data.validation={fraction: 0.1, count: 4}",
            "either `fraction` or `count`, not both, for example `validation: {count: 4}`",
        ),
        (
            "data.validation.fraction=10%",
            "data.validation.fraction needs a number, not 10%; for example `fraction: 0.01`",
        ),
        (
            "data.validation.fraction=2",
            "data.validation.fraction needs a number below 1, not 2; for example `fraction: 0.01`",
        ),
        (
            "data.sources=[a.jsonl]",
            "data.sources.0 needs the keys path, config, split, revision, sample, name, … below it, not a.js",
        ),
        ("data.sources=[a.jsonl]", "not a.jsonl; for example `sources: [{path: chats.jsonl}]`"),
        (
            "data.sources=a.jsonl",
            "data.sources needs a list, not a.jsonl; for example `sources: [{path: chats.jsonl}]`",
        ),
        (
            "data.sources=[]",
            "data.sources needs at least 1 in its list, not []; for example `sources: [{path: chats.jsonl}]`",
        ),
        (
            "data.sources=[{split: train}]",
            "data.sources.0: give either `path` or `sample`, for example `path: chats.jsonl`",
        ),
        ("data.sources.0.split=[a, b]", "data.sources.0.split needs a text, not [a, b]; for example `split: train`"),
        (
            "data.sources.0.columns=[q, a]",
            "data.sources.0.columns needs keys with values below it, not [q, a]; for example `columns: {user",
        ),
        (
            "data.sources.0.columns={usr: q}",
            "data.sources.0.columns: no format has a field usr; did you mean user? for example `columns: {",
        ),
        (
            "data.sources.0.columns={zzz: q}",
            "no format has a field zzz; it may be one of messages, system, user, assistant,",
        ),
        (
            "data.sources.0.roles={doctor: helper}",
            "data.sources.0.roles.doctor needs one of system, developer, user, assistant, tool, ",
        ),
        (
            "data.tokenizer=5",
            "data.tokenizer needs a text or the keys vocab_size below it, not 5; for example `tokenizer: models/",
        ),
        (
            "data.tokenizer={path: tok}",
            "unknown key data.tokenizer.path; valid keys: vocab_size; for example `tokenizer: models/SmolLM2",
        ),
        (
            "data.tokenizer={vocab_size: 9}",
            "data.tokenizer.vocab_size needs a number of at least 300, not 9; for example `vocab_size: 4096`",
        ),
        ("data.control_tokens=no", "data.control_tokens needs one of keep, escape, reject, not false"),
        ("data.template_date=now", "data.template_date needs a date, not now; for example `template_date: 2025-01-01`"),
        ("data.deduplicate=maybe", "data.deduplicate needs true or false, not maybe; for example `deduplicate: false`"),
        (
            "data=5",
            "data needs the keys sources, tokenizer, tokenizer_revision, special_tokens, store, chat_template, …",
        ),
        (
            "evaluate.samples=hi",
            "evaluate.samples needs a list, not hi; for example `samples: ['What can you help me with?']`",
        ),
        ("train.zero=3", "nvme_path, hpz_partition_size, coalesce below it, not 3; for example `zero: {stage: 2}`"),
        ("model.path=5", "model.path needs a text, not 5; for example `path: models/SmolLM2-135M`"),
        ("learning_rate", "overrides look like section.key=value"),
        ("train.seed=[1", "is not a YAML value"),
    ],
)
def test_mistakes_are_explained(file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_run(str(file), [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["chats.jsonl", "chats.csv.gz", "chats.parquet", "chats.json", "lines.json"])
@pytest.mark.parametrize("command", ["prepare", "inspect", "plan"])
def test_a_file_of_rows_is_no_configuration(
    command: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = '{"messages": [{"role": "user", "content": "a: b"}]}'
    (tmp_path / name).write_text(f"[{row}]" if name == "chats.json" else f"{row}\n{row}\n", encoding="utf-8")
    assert main([command, str(tmp_path / name)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path / name} is a file of rows, not a configuration; name it in `data.sources` of a YAML file, "
        f"and give that\n"
    )


def test_a_configuration_may_be_json(file: Path, tmp_path: Path) -> None:
    values = load_run(str(file), []).model_dump_json()
    (tmp_path / "small.json").write_text(values, encoding="utf-8")
    assert load_run(str(tmp_path / "small.json"), []) == load_run(str(file), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "line 2: `name` is given twice"),
        ("name: [\n", "line 2"),
        ("runs: {{ here }}\n", "line 1: a key must be a word"),
        ("1: x\nname: a\n", "is missing|1"),
        ("name: \x07\n", "special characters are not allowed"),
        ("just text\n", "expected sections"),
        ("name: a\nmodel: {path: x}\n", "data is missing"),
    ],
)
def test_broken_files_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_run(str(path), [])
    assert any(part in str(error.value) for part in message.split("|"))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
