"""`shardtune inspect`: what is on the screen, from a store, a run or a configuration."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer

from data_tools.inspect import Inspection, inspect_store
from data_tools.store import TokenStore, write_manifest
from launcher.cli import main
from launcher.config import load_run, save_run
from launcher.show_store import show_store
from tests.shown_stores import ACTING, HOSTILE, write_store


def screen(found: Inspection, color: bool = False, width: int = 100) -> str:
    file = io.StringIO()
    color_system = "standard" if color else None
    console = Console(file=file, soft_wrap=True, force_terminal=True, color_system=color_system, width=width)  # type: ignore[arg-type]
    show_store(found, console)
    return file.getvalue()


def encode(store: TokenStore, text: str) -> list[int]:
    tokenizer = Tokenizer.from_file(str(store.folder / "tokenizer" / "tokenizer.json"))
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_trained_text_is_told_with_and_without_colours(store: TokenStore) -> None:
    found = inspect_store(store, None, 1)
    assert "⟦You are welcome. <|im_end|>⟧↵" in screen(found)
    colored = screen(found, color=True)
    assert "⟦" not in colored
    assert re.search("\x1b\\[32m[^\x1b]+\x1b\\[0m\x1b\\[1;7;32m<\\|im_end\\|>\x1b\\[0m\x1b\\[2m↵", colored)


def test_other_weights_and_cut_characters(store: TokenStore, tmp_path: Path) -> None:
    ids = encode(store, "aé\n")
    documents: list[dict[str, Any]] = [{"ids": ids, "runs": [1, 2, 1], "weights": [0.5]}, {"ids": ids, "runs": [2, 2]}]
    shown = screen(inspect_store(write_store(tmp_path / "s", store, documents), None, 2), color=True)
    assert "\x1b[33mé\x1b[0m" in shown
    assert "\x1b[2ma\x1b[0m\x1b[2m\ufffd\x1b[0m\x1b[32m\ufffd\x1b[0m" in shown
    assert "weight other than 1" in shown


def test_what_a_document_says_does_nothing_to_a_terminal(store: TokenStore, tmp_path: Path) -> None:
    ids = encode(store, HOSTILE)
    proofs = {HOSTILE: {"checked": 1, "of": 2, "text": HOSTILE}}
    documents = [{"ids": ids, "runs": [len(ids) - 1, 1]}]
    made = write_store(tmp_path / "s", store, documents, name=HOSTILE, proofs=proofs)
    reject = {"file": HOSTILE, "row": 0, "kind": "rejected", "reason": HOSTILE}
    (made.folder / "rejects.jsonl").write_text(json.dumps(reject) + "\n", encoding="utf-8")
    shown = screen(inspect_store(made, None, 1), width=400)
    assert not re.search(ACTING, shown)
    harmless = r"\x1b[31mred\x07 [bold]b[/bold] </pre><script>alert(1)</script> \u202eevil\u2066 \x9b2J\r"
    assert shown.count(harmless) == 7  # source, reason and its file, proof and its text, caption, document


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_number_is_shortened(width: int, store: TokenStore) -> None:
    row = next(line for line in screen(inspect_store(store, None, 1), width=width).splitlines() if "chats" in line)
    totals = store.manifest["totals"]
    assert [cell for cell in row.split() if cell != "(messages)"][:8] == [
        "chats",
        "200",
        "200",
        "0",
        "0",
        "200",
        *(f"{totals[k]:,}" for k in ("tokens", "trained_tokens")),
    ]


def test_a_store_a_run_and_a_configuration(
    recipe: Path, store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*arguments: object) -> str:
        assert main(["inspect", *map(str, arguments), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["totals"]["documents"] == 200
        assert sum(bin["documents"] for bin in facts["lengths"]) == 200
        return str(facts["store"])

    assert told(store.folder) == str(store.folder)
    assert told(recipe, f"data.store={store.folder}") == str(store.folder)
    prepared = tmp_path / "runs" / "tiny" / "tokens"
    shutil.copytree(store.folder, prepared)
    assert told(recipe) == told(tmp_path / "runs" / "tiny") == told(prepared) == str(prepared)
    save_run(load_run(str(recipe), [f"data.store={store.folder}"]))
    assert told(tmp_path / "runs" / "tiny") == str(store.folder)
    assert told(prepared) == str(prepared)
    monkeypatch.chdir(tmp_path)
    assert told("tiny") == str(store.folder)


def test_the_screen_the_facts_and_the_page(
    store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", str(store.folder), "--n", "2", "--source", "chats", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "chats, row 50, document 50: " in shown
    assert f"written → {page}" in shown
    assert "chats, row 150 · document 150" in page.read_text(encoding="utf-8")
    assert main(["inspect", str(store.folder), "--n", "2", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["documents"]
    assert (first["source"], first["row"], second["row"]) == ("chats", 50, 150)
    assert first["segments"][0][1] is False
    assert first["segments"][1] == [" ".join(map(str, range(50 % 17))) + " blue-50<|im_end|>", True]


def test_mistakes(store: TokenStore, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: object) -> str:
        assert main(["inspect", *map(str, arguments)]) == 1
        text = capsys.readouterr().err.strip()
        assert text.startswith("error: ")
        assert "\n" not in text
        return text

    assert "does not exist; run `shardtune prepare`" in error(recipe)
    assert "is no finished token store (manifest.json) and no run (run.yaml)" in error(tmp_path)
    assert "is neither a configuration file nor" in error("gone")
    assert "which no override changes" in error(store.folder, "data.max_length=8")
    assert "has no source Chats; did you mean chats?" in error(store.folder, "--source", "Chats")
    assert "--n -1: give the number of documents" in error(store.folder, "--n=-1")
    assert "--html: cannot write" in error(store.folder, "--html", tmp_path / "gone" / "page.html")


def test_a_proof_that_does_not_apply_is_not_told_as_none_of_many(store: TokenStore, tmp_path: Path) -> None:
    proofs = {"prompt": {"checked": 0, "of": 2, "text": "nothing that asks is learnt", "not_applicable": HOSTILE}}
    made = write_store(tmp_path / "s", store, [{"ids": [5, 6], "runs": [1, 1]}], proofs=proofs)
    shown = screen(inspect_store(made, None, 1), width=400)
    assert "prompt: does not apply (\\x1b[31mred" in shown and "0 of 2" not in shown
    assert not re.search(ACTING, shown)


def test_totals_without_documents(store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", str(store.folder), "--n", "0", "--html", str(page)]) == 0
    shown, html = capsys.readouterr().out, page.read_text(encoding="utf-8")
    assert "up to here" in shown and "control token" not in shown
    assert "<h2>Lengths</h2>" in html and "<h2>Documents</h2>" not in html
    assert main(["inspect", str(store.folder), "--n", "0", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["documents"], facts["totals"]["documents"]) == ([], 200)


def cut(path: Path) -> None:
    """What is left of a file when a copy breaks off."""
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("harm", [cut, Path.unlink])
@pytest.mark.parametrize(
    "name", ["manifest.json", "index.arrow", "shards/00000.arrow", "rejects.jsonl", "tokenizer/tokenizer.json"]
)
def test_a_damaged_store_is_one_line(
    name: str, harm: Callable[[Path], None], store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(store.folder, tmp_path / "s")
    (tmp_path / "s" / "rejects.jsonl").write_text(json.dumps({"file": "x" * 200, "kind": "rejected", "reason": "no"}))
    harm(tmp_path / "s" / name)
    assert main(["inspect", str(tmp_path / "s")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "--debug" not in line
    assert str(tmp_path / "s") in line
    assert re.search(r"prepare", line)


def test_a_flipped_byte_in_what_is_shown_is_noticed(
    store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(store.folder, tmp_path / "s")
    shard = tmp_path / "s" / "shards" / "00002.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    assert main(["inspect", str(tmp_path / "s"), "--n", "20"]) == 1
    assert f"{shard} is not what was written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["shards/00002.arrow", "index.arrow"])
def test_a_change_of_what_is_not_shown_is_noticed(
    name: str, store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the time of the file, which is later than that of the manifest; one that is gone, too."""
    shutil.copytree(store.folder, tmp_path / "s")
    path = tmp_path / "s" / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    for _ in range(2):
        assert main(["inspect", str(tmp_path / "s"), "--n", "0"]) == 1
        assert f"{path} is not what was written" in capsys.readouterr().err
        path.unlink(missing_ok=True)


def test_an_unfinished_store_is_one_line(store: TokenStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its own folder, and by that of its run, which has no run.yaml before it is planned."""
    shutil.copytree(store.folder, tmp_path / "run" / "tokens", ignore=shutil.ignore_patterns("manifest.json"))
    for name in (tmp_path / "run", tmp_path / "run" / "tokens"):
        assert main(["inspect", str(name)]) == 1
        said = f"error: the token store {tmp_path / 'run' / 'tokens'} is not finished; run `shardtune prepare`"
        assert capsys.readouterr().err.startswith(said)


def test_what_prepare_may_tell_of_a_source_is_shown(store: TokenStore, tmp_path: Path) -> None:
    made = write_store(tmp_path / "s", store, [{"ids": [5, 6], "runs": [1, 1]}])
    facts = json.loads((made.folder / "manifest.json").read_text(encoding="utf-8"))
    facts["sources"][0] |= {"format": "sharegpt", "notes": ["2 rows had no system message", "one was empty"]}
    write_manifest(made.folder, facts)
    found = inspect_store(TokenStore(made.folder), None, 1)
    assert "made (sharegpt; 2 rows had no system message; one was empty)" in screen(found, width=200)
    assert found.as_json()["sources"][0]["format"] == "sharegpt"
