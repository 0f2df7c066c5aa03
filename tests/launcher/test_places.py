"""The folders that a configuration names."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.config import load_run
from launcher.environment import hub_cache, variables_passed_on
from launcher.places import folders_named


def named(folder: Path, **sections: dict[str, Any]) -> set[Path]:
    config: dict[str, Any] = {"name": "here", "runs": str(folder / "runs"), **sections}
    config["data"] = {
        "tokenizer": {"vocab_size": 300},
        "sources": [{"sample": "python_docs"}],
        **config.get("data", {}),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return set(folders_named(load_run(str(folder / "run.yaml"), []))) - {hub_cache()}


@pytest.fixture(autouse=True)
def no_places_of_who_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "PYTHONPATH", "SHARDTUNE_CACHE", "TRACKIO_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_of_files_and_globs_it_is_the_folder_and_of_what_is_not_yet_the_one_that_is(tmp_path: Path) -> None:
    for name in ("chats", "models/small", "backup", "runs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "chats" / "one.jsonl").write_text("")
    found = named(
        tmp_path,
        data={
            "sources": [{"path": str(tmp_path / "chats" / "*.jsonl")}, {"path": "s3://bucket/more.jsonl"}],
            "store": str(tmp_path / "tokens" / "first"),
            "tokenizer": str(tmp_path / "models" / "small"),
        },
        model={"path": str(tmp_path / "models" / "small")},
        checkpoint={"copy_to": str(tmp_path / "backup" / "first")},
    )
    assert found == {tmp_path, *(tmp_path / name for name in ("chats", "models/small", "backup", "runs"))}


def test_the_whole_machine_is_never_shown(tmp_path: Path) -> None:
    assert Path("/") not in named(tmp_path, checkpoint={"copy_to": "/nowhere-at-all/first"})


def test_containers_find_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HOME", raising=False)
    assert dict(variables_passed_on(places=True, contained=True))["HF_HOME"] == str(hub_cache())
    assert "HF_HOME" not in dict(variables_passed_on(places=True, contained=False))
    assert "HF_HOME" not in dict(variables_passed_on(places=False, contained=True))


def test_containers_see_what_variables_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hub", "code", "nvme", "runs"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'code'}:{tmp_path / 'code' / 'more'}")
    zero = {"stage": 3, "offload_parameters": "nvme", "nvme_path": str(tmp_path / "nvme" / "mine")}
    found = named(tmp_path, train={"zero": zero})
    assert found >= {tmp_path / "hub", tmp_path / "code", tmp_path / "nvme"}
