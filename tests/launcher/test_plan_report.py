"""`shardtune plan` says what training will see, and fails when that is not what was asked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.balance import ATTENTION_COST
from data_tools.store import TokenStore
from launcher.cli import main
from tests.conftest import chats, write_jsonl


@pytest.fixture
def plan(recipe: Path, store: TokenStore, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in this process: exit code, facts and what people see."""

    def run(*overrides: str) -> tuple[int, dict[str, Any], str]:
        code = main(["plan", str(recipe), f"data.store={store.folder}", *overrides, "--ranks", "2", "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return run


def test_facts_and_tables_tell_the_same(plan: Any, store: TokenStore) -> None:
    code, facts, shown = plan("data.sources.0.weight=0.5")
    assert code == 0
    (source,) = facts["sources"]
    assert source["documents"] == len(store)
    assert facts["documents"] == source["taken_documents"] == (len(store) - source["validation"]) // 2
    assert source["taken_tokens"] == facts["tokens"]
    assert (
        facts["left_out"]["not_taken"] == source["not_taken"] == len(store) - source["validation"] - facts["documents"]
    )
    assert facts["lengths"]["tokens"] == store.index["length"].sum()
    assert 0 < facts["trained_share"] == round(facts["trained_tokens"] / facts["tokens"], 5) < 1
    assert 0 <= facts["imbalance_complete_steps"] < 1 > facts["imbalance"] > 0
    assert facts["store_bytes"] > 0 < facts["plan_bytes"]
    assert shown.index("half have at most") < shown.index("chats") < shown.index("planned")
    for number in (facts["documents"], facts["tokens"], source["not_taken"], facts["packs"]):
        assert f"{number:,}" in shown
    assert {"plan", "packs", "validation_packs", "fill", "steps_per_epoch", "imbalance", "too_long"} <= set(facts)


def test_rows_that_are_not_in_the_store_are_told_by_reason(
    plan: Any, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before there are documents there are rows: what was refused of them is part of what training sees."""
    rows: list[Any] = [*chats(40), {"messages": []}, {"messages": [{"role": "user", "content": "Only asked."}]}]
    source = write_jsonl(tmp_path / "some.jsonl", rows)
    made = [f"data.store={tmp_path / 'some'}", f"data.sources=[{{path: {source}}}]", "data.max_reject_fraction=0.5"]
    for said in ("prepared", "already prepared"):
        assert main(["prepare", str(recipe), *made, "--json"]) == 0
        out, err = capsys.readouterr()
        assert f"{said} 40 of 42 rows" in err
        assert "rows rejected: 2, dropped: 0; the reasons of all 2 are in" in err
        assert f"  1 rejected: `messages` is empty (row 40 of {source})\n" in err
        assert [reason["count"] for reason in json.loads(out)["reasons"]] == [1, 1]
    code, facts, shown = plan(*made)
    assert code == 0
    assert (facts["rows_in"], facts["rows_out"], facts["rejected"], facts["dropped"]) == (42, 40, 2, 0)
    assert sorted(reason["reason"] for reason in facts["reasons"]) == [
        "`messages` is empty",
        "no assistant turn: there is nothing to learn",
    ]
    assert "42 rows read: 40 in the store, 2 rejected, 0 dropped" in shown
    assert f"1 rejected: `messages` is empty (row 40 of {source})" in shown
    assert facts["reasons"][0]["examples"][0]["row"] == 40


def test_exact_duplicates_are_told_with_the_setting_that_drops_them(
    plan: Any, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_jsonl(tmp_path / "some.jsonl", [*chats(40), *chats(15), *chats(5)])
    made = [f"data.store={tmp_path / 'some'}", f"data.sources=[{{path: {source}}}]"]
    assert main(["prepare", str(recipe), *made]) == 0
    capsys.readouterr()
    told = "20 of 60 documents (33.3%) repeat an earlier one exactly; data.deduplicate=true leaves them out of the plan"
    _, facts, shown = plan(*made)
    assert told in shown and facts["duplicates"] == 20
    _, facts, shown = plan(*made, "data.deduplicate=true")
    assert "repeat an earlier one" not in shown and facts["duplicates"] == facts["left_out"]["duplicate"] == 20
    assert main(["inspect", str(tmp_path / "some"), "--n", "0", "--html", str(tmp_path / "page.html"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert told in err and json.loads(out)["duplicates"] == 20
    assert told in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "repeat an earlier one" not in plan()[2]


def test_small_data_is_told_as_it_is(plan: Any) -> None:
    """One pack for steps of six, and a ten-thousandth of so few documents is none of them."""
    _, facts, shown = plan("data.sources.0.max_rows=2", "data.validation.fraction=0.0001")
    assert (facts["packs"], facts["steps_per_epoch"], facts["validation_packs"]) == (1, 1, 0)
    assert facts["imbalance_complete_steps"] is None
    assert "planned 1 pack of 256 tokens" in shown and " 1 step an epoch;" in shown
    assert "no step is complete: 1 pack, and train.packs_per_step=6; work is 50.0% uneven over 2 ranks" in shown
    assert "nothing is held out for validation: data.validation.fraction=0.0001 of 200 documents chose none" in shown
    assert "nothing is held out for validation, as data.validation asks for" in plan("data.validation.fraction=0")[2]
    assert "nothing is held out" not in plan()[2]
    assert "truncated: 13 documents of more than" in plan("data.max_length=200", "data.too_long=truncate")[2]


def test_tokens_of_a_stream_that_are_in_rows_without_labels_are_told(plan: Any) -> None:
    """Rows of 64 tokens, some of which are nothing but a system prompt."""
    _, facts, shown = plan("data.packing=wrapped", "data.max_length=64")
    lost = facts["tokens_in_rows_without_labels"]
    assert lost > 0
    assert lost == facts["sources"][0]["taken_tokens"] - facts["tokens"]
    assert f"left out: {lost:,} tokens in rows without labels (data.packing=wrapped)" in shown
    _, facts, shown = plan()
    assert facts["tokens_in_rows_without_labels"] == 0
    assert "rows without labels" not in shown


def test_sources_that_were_changed_since_are_told(
    recipe: Path, chat_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To touch a file does not change it, and nothing is said of files that are not here."""
    (tmp_path / "data").mkdir()
    for name in ("a.jsonl", "b.jsonl", "alone.jsonl"):
        shutil.copy(chat_file, tmp_path / "data" / name)
    paths = [f"{tmp_path}/data/?.jsonl", f"{tmp_path}/data/alone.jsonl"]
    sources = "data.sources=[" + ", ".join(f"{{path: '{path}', name: s{n}}}" for n, path in enumerate(paths)) + "]"
    assert main(["prepare", str(recipe), sources]) == 0
    capsys.readouterr()

    def told() -> list[str]:
        assert main(["plan", str(recipe), sources, "--ranks", "2", "--json"]) == 0
        out, err = capsys.readouterr()
        stale: list[str] = json.loads(out)["stale_sources"]
        said = "changed since `shardtune prepare`: the files of " + ", ".join(stale)
        assert (said in err) == ("changed since" in err) == bool(stale)
        return stale

    assert told() == []
    (tmp_path / "data" / "a.jsonl").touch()
    assert told() == []
    with open(tmp_path / "data" / "b.jsonl", "r+") as file:
        file.write("[")
    assert told() == ["s0"]
    shutil.copy(chat_file, tmp_path / "data" / "b.jsonl")
    assert told() == []
    shutil.copy(chat_file, tmp_path / "data" / "c.jsonl")
    write_jsonl(tmp_path / "alone.jsonl", chats(3)).replace(tmp_path / "data" / "alone.jsonl")
    assert told() == ["s0", "s1"]
    shutil.rmtree(tmp_path / "data")
    assert told() == []


def test_the_attention_cost_is_that_of_the_model(plan: Any) -> None:
    _, facts, _ = plan()
    layers, width, parameters = 2, 32, 400 * 32 + 2 * (3 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert facts["attention_cost"] == pytest.approx(layers * width / parameters)


def test_a_model_of_a_hub_that_nobody_answers_for_is_one_line(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, _, shown = plan("model={path: org/none}")
    assert code == 1
    (said,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: model.path: org/none is no folder here, and the hub cannot be reached (")
    assert said.endswith("check the path, or run `shardtune fetch CONFIG` on a machine with network")


def test_damaged_files_are_one_line(plan: Any, store: TokenStore, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    assert plan()[0] == 0
    whole = (run / "plan" / "plan.json").read_bytes()
    checkpoint = run / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "commit.json").write_text("{}")
    (run / "plan" / "plan.json").write_text("{")
    code, _, shown = plan()
    assert (code, len(shown.splitlines())) == (1, 1)
    assert shown.startswith(f"error: {run / 'plan' / 'plan.json'} is damaged; delete it and run `shardtune plan`")
    (run / "plan" / "plan.json").unlink()
    assert plan()[0] == 0
    assert (run / "plan" / "plan.json").read_bytes() == whole
    (run / "run.yaml").write_text("model: [")
    code, _, shown = plan()
    assert (code, len(shown.splitlines())) == (1, 1)
    assert shown.startswith(f"error: {run / 'run.yaml'}: line ") and "--debug" not in shown
    shutil.copytree(store.folder, tmp_path / "copy")
    (tmp_path / "copy" / "rejects.jsonl").write_text("{")
    code, _, shown = plan("name=other", f"data.store={tmp_path / 'copy'}")
    assert code == 1
    assert shown.splitlines()[-1].startswith(f"error: the token store {tmp_path / 'copy'} is damaged (")


@pytest.mark.parametrize("path", ["./no/model", "model", "/models/tiny", "models/tiny/model"])
def test_a_model_that_is_not_there_is_told_before_anything_is_read(plan: Any, path: str) -> None:
    code, facts, shown = plan(f"model={{path: {path}}}")
    assert (code, set(facts)) == (1, {"error"})
    assert shown == (
        f"error: model.path: there is no folder {path}, and it is not the id of a hub (owner/name); check the path\n"
    )


def test_a_mistyped_model_is_told_with_the_nearest_name(plan: Any, tmp_path: Path) -> None:
    (tmp_path / "smollm2").mkdir()
    _, _, shown = plan(f"model={{path: {tmp_path / 'smolm2'}}}")
    assert f"no folder {tmp_path / 'smolm2'} (did you mean {tmp_path / 'smollm2'}?), and" in shown


def test_only_training_needs_a_model(
    recipe: Path, plan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text[: text.index("model:")] + text[text.index("data:") :], encoding="utf-8")
    assert main(["prepare", str(recipe)]) == 0
    assert main(["inspect", str(recipe), "--n", "0"]) == 0
    capsys.readouterr()
    code, facts, shown = plan()
    assert (code, facts["attention_cost"], facts["embedding_rows"]) == (0, ATTENTION_COST, None)
    assert "no model is given, so attention counts as in one of 8 billion parameters; train plans again" in shown
    assert main(["train", str(recipe), "--ranks", "1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: model is missing; set model.path to a folder or hub id, or model.config=")
    assert len(said.splitlines()) == 1, "before anything is planned"
    _, facts, shown = plan("model={config: {architecture: llama, hidden_size: 32, num_attention_heads: 4}}")
    assert facts["attention_cost"] != ATTENTION_COST and "no model is given" not in shown


@pytest.mark.parametrize(("rows", "is_told"), [(400, False), (440, False), (50_000, True)])
def test_a_vocabulary_far_smaller_than_the_embedding_is_told(plan: Any, rows: int, is_told: bool) -> None:
    """Models are padded to rows that divide well; many more than that may mean another tokenizer."""
    code, facts, shown = plan(f"model.config.vocab_size={rows}")
    assert (code, facts["vocab_size"], facts["embedding_rows"]) == (0, 400, rows)
    told = "the embedding of the model has 50,000 rows, of which the 400 tokens of the tokenizer leave 49,600 unused"
    assert (told in shown) == ("unused" in shown) == is_told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.too_long=error", "documents have more than data.max_length=128"),
        ("data.sources.0.weight=0.0001", "no document is left to train on"),
        ("data.validation={count: 1000}", "leaves nothing to train on"),
    ],
)
def test_a_plan_that_is_not_what_was_asked_for_fails(plan: Any, override: str, message: str) -> None:
    code, facts, shown = plan("data.max_length=128", override)
    assert code == 1
    assert set(facts) == {"error"}
    assert message in shown
    assert "half have at most" in shown, "the lengths come first, so that a limit can be chosen"


def test_memory_is_forecast_and_what_fits_is_told(plan: Any) -> None:
    _, facts, shown = plan("train.packs_per_step=16")
    told = facts["memory"]
    assert (told["dtype"], told["of_rank"]) == ("float32", None) and "largest_micro_batch" not in told
    parts = (told[name] for name in ("parameters", "optimizer", "gradients", "activations", "loss_head"))
    assert max(told["activations"], told["optimizer"]) < told["peak"] <= sum(parts)
    assert "memory of a rank, forecast in float32" in shown and "packs_per_micro_batch" not in shown
    _, facts, shown = plan("train.packs_per_step=16", "--gpu-memory", "80")
    assert (facts["memory"]["dtype"], facts["memory"]["largest_micro_batch"]) == ("bfloat16", 8)
    assert "a rank has 80 GiB: train.packs_per_micro_batch=8 fits as well" in shown
    _, facts, shown = plan("train.packs_per_step=16", "--gpu-memory", "0.000001")
    assert facts["memory"]["largest_micro_batch"] is None
    assert "not even one pack fits; set a higher train.zero.stage" in shown
    between = 1.15 * facts["memory"]["peak"] / 2**30
    _, facts, shown = plan("train.packs_per_step=16", "train.packs_per_micro_batch=8", "--gpu-memory", str(between))
    assert f"packs_per_micro_batch=8 will not fit, {facts['memory']['largest_micro_batch']} will" in shown
