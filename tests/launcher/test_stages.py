"""The commands on a real run: two DeepSpeed ranks, real files, nothing replaced."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from data_tools.store import TokenStore
from launcher.cli import main
from sft.record import read_metrics
from tests.conftest import write_jsonl

ROOT = Path(__file__).parent.parent.parent
FIELDS = {
    *("step", "epoch", "loss", "grad_norm", "learning_rate", "mean_token_accuracy", "num_tokens"),
    *("tokens_per_second", "tokens_per_second_per_gpu", "packing_efficiency", "trained_tokens", "entropy"),
    *("step_time", "time/data", "time/forward", "time/backward", "time/optimizer", "memory_peak", "loss/chats"),
}


def shardtune(*arguments: object) -> dict[str, Any]:
    """Run a command as users do and return its JSON."""
    command = [sys.executable, "-m", "launcher", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def refused(*arguments: object) -> str:
    """Run a command that must fail with one line."""
    command = [sys.executable, "-m", "launcher", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    return line


def losses(run: Path) -> list[str]:
    """Every training loss to the last bit."""
    return [line["loss"].hex() for line in read_metrics(run) if "loss" in line]


def test_every_stage_from_chats_to_answers(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    prepared = shardtune("prepare", recipe)
    assert {"store", "rows_in", "rows_out", "rejected", "dropped", "tokens", "trained_tokens", "seconds"} <= set(
        prepared
    )
    assert (prepared["rows_in"], prepared["rows_out"]) == (200, 200)
    planned = shardtune("plan", recipe, "--ranks", 2)
    assert {"plan", "packs", "fill", "steps_per_epoch", "imbalance"} <= set(planned)
    assert 0.8 < planned["fill"] <= 1
    assert 0 <= planned["imbalance"] < 1
    trained = shardtune("train", recipe, "--ranks", 2)
    assert (trained["run"], trained["step"]) == (str(run), 8)
    lines = [line for line in read_metrics(run) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(set(line) == FIELDS for line in lines)
    assert trained["loss"] == lines[-1]["loss"] < lines[0]["loss"]
    validation = [line["validation_loss"] for line in read_metrics(run) if "validation_loss" in line]
    assert len(validation) == 3
    assert trained["validation_loss"] == validation[-1] < validation[0]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [f"step-{n:08d}.json" for n in (0, 4, 8)]

    model = Path(shardtune("export", run)["model"])
    plain_transformers_answers(model)
    (answer,) = shardtune("generate", run, "--prompt", "Count to 3 and name a colour.")["answers"]
    assert answer == json.loads((run / "samples" / "step-00000008.json").read_text())[0]
    evaluated_as_in_training(run, validation, tmp_path)
    report = Path(shardtune("report", run)["report"])
    assert "validation loss" in report.read_text(encoding="utf-8")
    assert (run / "loss.png").stat().st_size > 5_000

    assert "already has step-00000008; go on with --resume" in refused("train", recipe, "--ranks", 2)
    assert "planned with data.max_length=256, not 128" in refused("train", recipe, "data.max_length=128", "--resume")
    assert "train.learning_rate=0.01, not 0.02" in refused("train", recipe, "train.learning_rate=0.02", "--resume")


def evaluated_as_in_training(run: Path, validation: list[float], folder: Path) -> None:
    """`eval` finds in one process what two ranks found, answers held-out chats, and runs a task of lm-eval."""
    task = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(write_jsonl(folder / "colours.jsonl", [{"text": "1 2 3 ", "blue": 0}]))},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["blue", "\u2230\u2230\u2230\u2230"],
        "doc_to_target": "blue",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "own").mkdir()
    (folder / "own" / "colours.yaml").write_text(json.dumps(task), encoding="utf-8")
    found = shardtune("eval", run, "--answers", 4, "--lm-eval", folder / "own" / "colours")
    assert found == json.loads((run / "evals" / "step-00000008.json").read_text(encoding="utf-8"))
    assert found["validation_loss"] == pytest.approx(validation[-1], rel=1e-6)
    assert found["lm_eval"]["colours"]["acc,none"] == 1.0, "it was trained on blue"
    assert found["scores"]["answers"] == len(found["answers"]) == 4 and 0 < found["scores"]["bleu"] <= 100
    for answered in found["answers"]:
        assert answered["prompt"].endswith("<|im_start|>assistant\n") and answered["reference"].startswith("You are")
    exported = shardtune("eval", run, "--model", run / "model")
    assert exported["validation_loss"] == pytest.approx(validation[-1], rel=1e-6)
    earlier = shardtune("eval", run, "--step", 4)
    assert earlier["validation_loss"] == pytest.approx(validation[1], rel=1e-6)
    assert "has no checkpoint of step 7; it has those of 1, 4, 8" in refused("eval", run, "--step", 7)
    assert "evaluate.max_new_tokens=500" in refused("eval", run, "--answers", 1, "evaluate.max_new_tokens=500")


def plain_transformers_answers(model: Path) -> None:
    """A process that knows nothing of shardtune loads the folder and answers."""
    script = (
        "import sys\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "chat = [{'role': 'user', 'content': 'Hi'}]\n"
        "form = dict(return_tensors='pt', return_dict=True)\n"
        "inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, **form)\n"
        "output = model.generate(**inputs, max_new_tokens=5, do_sample=False)\n"
        "assert output.shape[1] > inputs['input_ids'].shape[1]\n"
        "assert not {'data_tools', 'sft', 'launcher'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(model)], check=True, cwd="/")
    names = {path.name for path in model.iterdir()}
    assert (model / "model.safetensors").stat().st_mode == (model / "config.json").stat().st_mode
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert {"chat_template.jinja", "tokenizer_config.json"} <= names


@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_resumed_run_has_the_same_losses_to_the_last_bit(
    stage: int, recipe: Path, store: TokenStore, tmp_path: Path
) -> None:
    """Dropout on, so that the random states matter; the resumed run loses its last checkpoint and half its metrics."""
    overrides = (recipe, f"train.zero.stage={stage}", "evaluate.every=8", f"data.store={store.folder}", "--ranks", 2)
    shardtune("train", *overrides)
    run = tmp_path / "runs" / "tiny"
    uninterrupted = losses(run)
    assert len(uninterrupted) == 8
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    weights_before = (run / "checkpoints" / "step-00000004" / "probe.pt").read_bytes()
    shardtune("train", *overrides, "--resume")
    assert losses(run) == uninterrupted
    assert (run / "checkpoints" / "step-00000004" / "probe.pt").read_bytes() == weights_before
    if stage != 2:  # the other tests export stage 2
        shardtune("export", run)


@pytest.mark.slow
def test_damage_is_noticed(recipe: Path, store: TokenStore, tmp_path: Path) -> None:
    """A flipped byte in the newest checkpoint: resuming and exporting take the one before. Wrong weights: no export."""
    overrides = (recipe, f"data.store={store.folder}", "--ranks", 1)
    shardtune("train", *overrides)
    run = tmp_path / "runs" / "tiny"
    uninterrupted = losses(run)
    newest = run / "checkpoints" / "step-00000008"
    (weights,) = newest.glob("state/mp_rank_00_model_states.pt")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    shardtune("train", *overrides, "--resume")
    assert losses(run) == uninterrupted
    assert "is damaged" in (run / "logs" / "rank-0.log").read_text(encoding="utf-8")
    replace_probe(newest)
    assert "logits differ from the trained model's" in refused("export", run)
    assert not (run / "model").exists()
    for record in run.glob("checkpoints/*/commit.json"):
        record.write_text("{")
    assert "were damaged; delete them to begin again" in refused("train", *overrides, "--resume")
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint; train first" in refused("export", run)


def replace_probe(checkpoint: Path) -> None:
    """Pretend that the trained model gave other logits."""
    probe = torch.load(checkpoint / "probe.pt", weights_only=True)
    torch.save({**probe, "logits": probe["logits"].flip(-1)}, checkpoint / "probe.pt")
    record = json.loads((checkpoint / "commit.json").read_text(encoding="utf-8"))
    from sft.digests import _describe

    record["files"]["probe.pt"] = _describe(checkpoint / "probe.pt")
    (checkpoint / "commit.json").write_text(json.dumps(record), encoding="utf-8")


def test_a_failing_rank_is_named_with_its_words(recipe: Path, store: TokenStore) -> None:
    line = refused("train", recipe, f"data.store={store.folder}", "model.config.vocab_size=300", "--ranks", 2)
    assert "the embedding has 300 rows, the tokenizer of the store needs 400" in line
    line = refused("plan", recipe, f"data.store={store.folder}", "model.config.hiden_size=3", "--ranks", 2)
    assert "llama has no hiden_size" in line
    line = refused("plan", recipe, f"data.store={store.folder}", "model.config.num_attention_heads=5", "--ranks", 2)
    assert "llama refuses it" in line
    assert "is not a multiple of 4 ranks" in refused("plan", recipe, "--ranks", 4)
    line = refused("train", recipe, f"data.store={store.folder}", "train.learning_rate=1e30", "--ranks", 1)
    assert re.search("step 2: .* (nan|inf).*; lower train.learning_rate", line)
    other = (recipe, f"data.store={store.folder}", "name=other", "--ranks", 1)
    line = refused("train", *other, "train.gradient_dtype=bfloat16")
    assert "train.gradient_dtype: the model computes in float32; set model.dtype=bfloat16" in line
    line = refused("train", *other, "train.liger=true")
    assert "train.liger: its kernels run on GPUs only" in line


def test_mistakes_before_training(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err.strip()

    assert "does not exist; run `shardtune prepare`" in error("plan", recipe, "--ranks", 2)
    assert "no file or folder matches gone.jsonl" in error("prepare", recipe, "data.sources.0.path=gone.jsonl")
    assert "is neither a configuration file nor" in error("train", "gone.yaml")
    assert main(["prepare", str(recipe)]) == 0
    capsys.readouterr()
    assert "max_length=8 is shorter than every document" in error("plan", recipe, "data.max_length=8", "--ranks", 1)
    assert "data.sources.0.path: chats.jsonl -> other.jsonl" in error("plan", recipe, "data.sources.0.path=other.jsonl")
    assert "there must be at least one" in error("plan", recipe, "--ranks", 0)
    other_settings = error("plan", recipe, "data.template_date=2026-01-01", "data.train_on=all")
    assert other_settings == error("prepare", recipe, "data.template_date=2026-01-01", "data.train_on=all")
    assert other_settings == (
        f"error: the token store {tmp_path / 'runs' / 'tiny' / 'tokens'} was made with other settings "
        "(data.template_date: 2025-01-01 -> 2026-01-01, data.train_on: assistant -> all); keep it and give another "
        "name=NAME or data.store=FOLDER, or delete it; then run `shardtune prepare`"
    )
    assert "no exported model" in error("generate", recipe)
    assert {path.name for path in (tmp_path / "runs" / "tiny").iterdir()} == {"tokens", "prepare.json"}
