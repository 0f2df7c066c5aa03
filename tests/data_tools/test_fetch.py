"""`shardtune fetch` against a hub on loopback, over HTTP; afterwards everything runs while nobody listens there."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from data_tools.config import DataConfig
from data_tools.errors import UserError
from data_tools.fetch import fetch
from data_tools.lock import Lock, Pin
from data_tools.prepare import prepare
from data_tools.store import TokenStore, file_digest
from tests.conftest import chats
from tests.data_tools.hub_server import Hub, Repository, serving

ROOT = Path(__file__).parent.parent.parent
CHATS, NEWER, MODEL = "c" * 40, "d" * 40, "e" * 40
README = b"""---
configs:
- config_name: short
  data_files:
  - {split: train, path: short/train-*.jsonl}
  - {split: test, path: short/test.jsonl}
- config_name: long
  data_files: long/*.jsonl
---
# Chats
"""
RECIPE = """\
name: fetched
runs: {folder}/runs
model: {{path: org/model}}
data:
  sources:
  - {{path: org/chats, config: short, split: train}}
  - {{path: {local}}}
  tokenizer: org/model
  max_length: 256
"""
SCRIPT = """\
import json, sys
from launcher.cli import main
print(json.dumps([main(arguments) for arguments in json.loads(sys.argv[1])]))
"""


def lines(first: int, last: int) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in chats(last)[first:])


@pytest.fixture(scope="module")
def hub(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A data set with two configurations, a model with its tokenizer, a gated data set."""
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    shutil.copytree(store.folder / "tokenizer", folder, dirs_exist_ok=True)
    model = {path.name: path.read_bytes() for path in folder.iterdir()}
    model |= {"original/weights.safetensors": b"0" * 1000, "pytorch_model.bin": b"0" * 1000}
    data = {
        "README.md": README,
        "short/train-0.jsonl": lines(0, 60),
        "short/train-1.jsonl": lines(60, 90),
        "short/test.jsonl": lines(90, 100),
        "long/a.jsonl": lines(100, 150),
    }
    repositories = {
        "datasets/org/chats": Repository({CHATS: data}),
        "models/org/model": Repository({MODEL: model}),
        "datasets/org/parts": Repository({CHATS: data}),
        "datasets/org/gated": Repository({CHATS: data}, gated=True),
    }
    with serving(repositories) as hub:
        yield hub


@pytest.fixture
def recipe(tmp_path: Path, chat_file: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RECIPE.format(folder=tmp_path, local=chat_file), encoding="utf-8")
    return path


Commands = Callable[..., tuple[list[int], list[str]]]


@pytest.fixture
def shardtune(tmp_path: Path) -> Commands:
    """Commands in one new process → their exit codes and the lines of stderr."""

    def run(endpoint: str, *commands: list[object]) -> tuple[list[int], list[str]]:
        arguments = json.dumps([[str(argument) for argument in command] for command in commands])
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        environment.pop("HF_TOKEN", None)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, arguments], capture_output=True, text=True, cwd=ROOT, env=environment
        )
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr.splitlines()

    return run


@pytest.mark.slow
def test_what_is_fetched_once_needs_no_network_again(
    recipe: Path, hub: Hub, shardtune: Commands, tmp_path: Path
) -> None:
    lock_file = tmp_path / "runs" / "fetched" / "lock.json"
    hub.breaks_after = 5_000
    codes, said = shardtune(hub.url, ["fetch", recipe])
    hub.breaks_after = None
    assert codes == [1]
    assert len(said) == 1 and "data.sources: org/chats" in said[0] and "run `shardtune fetch" in said[0], said
    assert not lock_file.exists()

    codes, said = shardtune(
        hub.url,
        ["fetch", recipe],
        ["fetch", recipe, "data.sources.0.path=org/none", "name=other"],
        ["fetch", recipe, "data.sources.0.path=org/gated", "name=other"],
        ["fetch", recipe, "data.sources.0.revision=v7", "name=other"],
        ["fetch", recipe, "data.sources.0.config=null", "name=other"],
        ["fetch", recipe, "data.sources.0.split=null", "name=other"],
        ["fetch", recipe, "data.sources.0.config=long", "data.sources.0.split=null"],
        ["fetch", recipe, "model.revision=v2"],
        ["prepare", recipe, "data.tokenizer_revision=v3"],
    )
    assert codes == [0, *[1] * 8], said
    expected = [
        "org/none is no file or folder here, and no dataset that the hub shows you; check the path or id",
        "org/gated is gated; ask for access on its page, then set HF_TOKEN",
        "org/chats has no revision 'v7'",
        "org/chats: Config name is missing. Please pick one among the available configs: ['short', 'long']",
        "org/chats has several splits; set `split` to one of test, train, or to all",
        "pins dataset org/chats config short split train, but the configuration asks for dataset org/chats config long",
        "pins model org/model, but the configuration asks for model org/model at v2",
        "pins tokenizer org/model, but the configuration asks for tokenizer org/model at v3",
    ]
    assert [text in line for text, line in zip(expected, said, strict=True)] == [True] * 8, said
    check_lock(lock_file, hub)

    written = lock_file.read_bytes()
    hub.repositories["datasets/org/chats"].commits[NEWER] = {"README.md": b"all is gone"}
    requests = len(hub.asked)
    nobody = "http://127.0.0.1:9"
    other = ["prepare", recipe, "data.sources.0.path=org/other"]
    codes, said = shardtune(nobody, ["prepare", recipe], ["plan", recipe, "--ranks", 1], ["fetch", recipe], other)
    assert (codes, len(said)) == ([0, 0, 0, 1], 1), said
    assert "but the configuration asks for dataset org/other" in said[0]
    assert len(hub.asked) == requests
    assert lock_file.read_bytes() == written
    tokens = TokenStore(tmp_path / "runs" / "fetched" / "tokens")
    assert [source["rows_in"] for source in tokens.manifest["sources"]] == [90, 200]
    resolved = (tmp_path / "runs" / "fetched" / "run.yaml").read_text(encoding="utf-8")
    assert f"revision: {MODEL}" in resolved and "path: org/chats" in resolved

    (blob,) = (tmp_path / "home").glob("hub/datasets--org--chats/snapshots/*/short/train-1.jsonl")
    blob.resolve().write_bytes(b"{}\n")
    codes, said = shardtune(nobody, ["fetch", recipe], ["prepare", recipe])
    assert codes == [1, 1]
    changed = "short/train-1.jsonl of dataset org/chats config short split train is not what"
    assert [changed in line for line in said] == [True, True], said


def check_lock(path: Path, hub: Hub) -> None:
    """Commits, needed files only, sizes and digests, no path of this machine."""
    text = path.read_text(encoding="utf-8")
    assert str(path.parent.parent.parent) not in text
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"
    lock = Lock.read(path)
    assert lock is not None
    assert [(pin.kind, pin.id, pin.commit) for pin in lock.pins] == [
        ("dataset", "org/chats", CHATS),
        ("files", "chats.jsonl", None),
        ("tokenizer", "org/model", MODEL),
        ("model", "org/model", MODEL),
    ]
    data, _, tokenizer, model = lock.pins
    assert data.splits == {"train": ["short/train-0.jsonl", "short/train-1.jsonl"]}
    assert set(data.files) == {"short/train-0.jsonl", "short/train-1.jsonl"}
    assert set(tokenizer.files) == {"chat_template.jinja", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert set(model.files) == {"config.json", "generation_config.json", "model.safetensors"}
    served = hub.repositories["models/org/model"].commits[MODEL]["model.safetensors"]
    copy = path.with_name("copy")
    copy.write_bytes(served)
    assert model.files["model.safetensors"] == {"size": len(served), "blake3": file_digest(copy)}
    assert not any("original" in request or "pytorch_model" in request for request in hub.asked)


def test_a_hub_that_nobody_answers_for_is_one_line(recipe: Path, shardtune: Commands, chat_file: Path) -> None:
    one = f"data.sources=[{{path: {chat_file}}}]"
    codes, said = shardtune(
        "http://127.0.0.1:9", ["prepare", recipe], ["fetch", recipe], ["prepare", recipe, one, "name=tokenizer"]
    )
    assert codes == [1, 1, 1]
    assert "org/chats is no file or folder here, and the hub cannot be reached" in said[0]
    assert "org/model is no folder here, and the hub cannot be reached" in said[2]
    assert all("hub cannot be reached" in line and "run `shardtune fetch CONFIG`" in line for line in said)
    assert ["data.sources" in line for line in said] == [True, True, False]


def test_a_repository_is_resolved_and_told_once(recipe: Path, hub: Hub, shardtune: Commands) -> None:
    """Four sources of one data set, and the model and its tokenizer."""
    asked_for = ("config: short, split: train", "config: short, split: test", "config: long", "config: long, name: b")
    sources = f"data.sources=[{', '.join(f'{{path: org/parts, {each}}}' for each in asked_for)}]"
    asked = len(hub.asked)
    codes, said = shardtune(hub.url, ["fetch", recipe, sources, "--json"])
    assert codes == [0], said
    assert hub.asked[asked:].count("GET /api/datasets/org/parts") == 1
    assert said[:3] == [
        f"dataset org/parts at {CHATS}: 4 sources, 4 files",
        f"tokenizer org/model at {MODEL}: 4 files",
        f"model org/model at {MODEL}: 3 files",
    ]


def test_local_inputs_are_locked_by_their_content(recipe: Path, shardtune: Commands, store: TokenStore) -> None:
    file = recipe.with_name("mine.jsonl")
    file.write_bytes(lines(0, 5))
    sources = f"data.sources=[{{path: {file}}}, {{sample: python_docs}}]"
    local = [recipe, "model={config: {architecture: llama}}", f"data.tokenizer={store.folder / 'tokenizer'}", sources]
    codes, said = shardtune("http://127.0.0.1:9", ["fetch", *local], ["fetch", *local])
    assert (codes, said) == ([0, 0], [])
    lock = Lock.read(recipe.parent / "runs" / "fetched" / "lock.json")
    assert lock is not None
    assert [(pin.kind, pin.id, sorted(pin.files)[:1]) for pin in lock.pins] == [
        ("files", "mine.jsonl", ["mine.jsonl"]),
        ("files", "tokenizer", ["chat_template.jinja"]),
    ]
    file.write_bytes(lines(0, 6))
    codes, said = shardtune("http://127.0.0.1:9", ["fetch", *local], ["prepare", *local])
    assert codes == [1, 1]
    assert ["mine.jsonl of files mine.jsonl is not what" in line for line in said] == [True, True], said
    assert not (recipe.parent / "runs" / "fetched" / "tokens" / "shards").exists()


def test_a_preparation_reads_what_is_locked(store: TokenStore, chat_file: Path, tmp_path: Path) -> None:
    """Two files of one name, and a tokenizer: all as they were fetched, wherever they are given from."""
    tokenizer, lock_file = tmp_path / "tokenizer", tmp_path / "lock.json"
    shutil.copytree(store.folder / "tokenizer", tokenizer)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(chat_file, tmp_path / name / "chats.jsonl")
    files = [tmp_path / "a" / "chats.jsonl", tmp_path / "b" / "chats.jsonl"]
    files[1].write_bytes(lines(0, 5))

    def config(*paths: Path) -> DataConfig:
        return DataConfig.model_validate({"sources": [{"path": str(p)} for p in paths], "tokenizer": str(tokenizer)})

    fetch(config(*files), None, None, lock_file)
    prepare(config(*reversed(files)), tmp_path / "tokens", lock_file=lock_file)
    other = shutil.copy(chat_file, tmp_path / "other.jsonl")
    with pytest.raises(UserError, match=r"pins files chats\.jsonl; .* but the configuration asks for files .*other"):
        prepare(config(Path(other)), tmp_path / "new", lock_file=lock_file)
    files[1].write_bytes(lines(0, 6))
    with pytest.raises(
        UserError, match=r"chats\.jsonl of files chats\.jsonl is not what .*lock\.json says; put it back"
    ):
        prepare(config(*files), tmp_path / "tokens", lock_file=lock_file)
    files[1].write_bytes(lines(0, 5))
    (tokenizer / "chat_template.jinja").write_text("other", encoding="utf-8")
    with pytest.raises(UserError, match=r"chat_template\.jinja of files tokenizer is not what .*lock\.json says"):
        prepare(config(*files), tmp_path / "tokens", lock_file=lock_file)


def test_a_lock_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    assert Lock.read(path) is None
    pin = Pin("dataset", "a/b", {"x": {"size": 1, "blake3": "0"}}, "v1", "f" * 40, "c", None, {"train": ["x"]})
    Lock(path, [pin]).write()
    lock = Lock.read(path)
    assert lock == Lock(path, [pin])
    assert lock.find("dataset", "a/b", "v1", "c") == lock.find("dataset", "a/b", "f" * 40, "c") == pin
    with pytest.raises(UserError, match=r"pins dataset a/b config c at v1, but .* asks for dataset a/b config c at v2"):
        lock.find("dataset", "a/b", "v2", "c")
    for text in ("{", "[]", '{"format_version": 9}', '{"format_version": 1, "pins": [{"kind": 1}]}'):
        path.write_text(text)
        with pytest.raises(UserError, match="is not a lock of this version"):
            Lock.read(path)


OWN_CODE = b"""
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_model"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.slow
def test_a_model_with_code_of_its_own_is_trained_without_network(
    recipe: Path, hub: Hub, shardtune: Commands, tmp_path: Path
) -> None:
    """Its code is fetched with its weights, and runs because the configuration trusts this commit."""
    files = dict(hub.repositories["models/org/model"].commits[MODEL])
    values = json.loads(files["config.json"])
    values |= {"model_type": "own_model", "max_position_embeddings": 256}
    values["auto_map"] = {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnForCausalLM"}
    files |= {"config.json": json.dumps(values).encode(), "own_code.py": OWN_CODE}
    files["generation_config.json"] = b'{"do_sample": true, "temperature": 0.6}'
    hub.repositories["models/org/own"] = Repository({NEWER: files})
    own = [recipe, "model.path=org/own", f"model.revision={NEWER}", "model.trust_remote_code=true"]
    own += ["name=own", "train.max_steps=1", "train.packs_per_step=2", "data.sources.0.path=org/parts"]
    codes, said = shardtune(hub.url, ["fetch", *own])
    assert codes == [0], said
    requests = len(hub.asked)
    codes, said = shardtune("http://127.0.0.1:9", ["prepare", *own], ["train", *own], ["export", *own])
    assert codes == [0, 0, 0], said
    assert len(hub.asked) == requests
    exported = tmp_path / "runs" / "own" / "model"
    assert (exported / "own_code.py").read_bytes() == OWN_CODE
    assert not any(b"snapshots" in path.read_bytes() for path in exported.glob("*.json")), "no path of this machine"
    assert json.loads((exported / "generation_config.json").read_text())["temperature"] == 0.6

    # What was fetched is what the run began with, though its YAML asks for no commit: it goes on, and is launched.
    longer = [*own, "train.max_steps=2"]
    stages = ["--on", "local", "--stages", "train", "--dry-run"]
    codes, said = shardtune("http://127.0.0.1:9", ["launch", *longer, *stages], ["train", *longer, "--resume"])
    assert codes == [0, 0], said
    adapter = [*own, "name=adapter", "model.lora={rank: 2}", f"data.store={tmp_path / 'runs' / 'own' / 'tokens'}"]
    codes, said = shardtune(
        hub.url, ["fetch", *adapter], ["train", *adapter], ["export", str(tmp_path / "runs" / "adapter"), "--adapter"]
    )
    assert codes == [0, 0, 0], said
    described = json.loads((tmp_path / "runs" / "adapter" / "adapter" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == "org/own"
