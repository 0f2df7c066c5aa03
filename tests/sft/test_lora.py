"""Adapters: what is trained, what a checkpoint holds, and that an export computes what was trained."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from data_tools.config import DataConfig
from data_tools.errors import UserError
from data_tools.prepare import prepare
from data_tools.store import TokenStore
from launcher.config import RunConfig, save_run
from sft.adapter import fill_adapters
from sft.config_model import LoraConfig, ModelConfig
from sft.export import export_model
from sft.lora import add_lora, check_packages, check_quantize, trains_embeddings
from sft.model import PackedCausalLM
from sft.progress import read_progress
from sft.run import TrainingRun
from sft.self_test import check_documents_are_apart
from sft.world import World
from tests.ranks import run_ranks
from tests.sft.models import tiny_llama
from tests.sft.runs import plan_run

NEW = ["<|think|>", "<|/think|>"]


@pytest.mark.parametrize("target", ["all-linear", ["q_proj", "v_proj"], r".*\.layers\.1\..*_proj"])
def test_only_adapters_are_trained_and_all_in_one_pass(target: str | list[str]) -> None:
    model = tiny_llama(tied=True)
    add_lora(model, LoraConfig(rank=4, target=target), 0)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    layers = {"all-linear": 14, r".*\.layers\.1\..*_proj": 7}
    assert len(trained) == 2 * (4 if isinstance(target, list) else layers[target])
    assert all("lora_" in name for name in trained)
    give_weights(model)
    packed = PackedCausalLM(model)
    check_documents_are_apart(packed, torch.device("cpu"))
    assert {name.removeprefix("model.") for name in packed.state_dict()} == set(trained)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_trained_where_tokens_are_new(tied: bool) -> None:
    for asked, added, expected in ((None, 2, True), (None, 0, False), (False, 2, False), (True, 0, True)):
        model = tiny_llama(tied)
        add_lora(model, LoraConfig(embeddings=asked), added)
        ends = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
        assert [weight.requires_grad for weight in ends] == [expected] * 2
        assert (ends[0] is ends[1]) == tied


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (["q_proj", "query"], "'query' matches no layer; the linear layers are down_proj, .* all-linear or a regular"),
        ("q_proj", "'q_proj' matches no layer; .* regular expression of whole names"),
        (".*", "matches"),
        (["lm_head"], "matches lm_head, embedding or output layer, .*model.lora.embeddings=true"),
        (["layers"], "matches what can have no adapter: Target module ModuleList"),
    ],
)
def test_a_target_that_cannot_be_is_refused(target: str | list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        add_lora(tiny_llama(tied=False), LoraConfig(target=target), 0)


def test_activation_checkpointing_changes_no_gradient() -> None:
    """The embedding is frozen, so nothing before the first layer asks for a gradient."""
    found = []
    for checkpointing in (False, True):
        model = tiny_llama(tied=True)
        add_lora(model, LoraConfig(rank=4), 0)
        give_weights(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        packed, places = PackedCausalLM(model), torch.arange(8)
        ids, borders = torch.arange(9)[None], torch.tensor([0, 9], dtype=torch.int32)
        loss, _ = packed(ids, ids.clone(), borders, 9, places, ids[0, 1:], None)
        loss.backward()
        found.append([weight.grad for weight in model.parameters() if weight.requires_grad])
    assert all(a is not None and torch.equal(a, b) and a.abs().max() > 0 for a, b in zip(*found, strict=True))


def give_weights(model: PreTrainedModel) -> None:
    """B is zero at first: give it some, so that adapters count."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)


@pytest.fixture(scope="module")
def new_store(data_config: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """With tokens that a model of 400 rows has not."""
    return prepare(
        data_config.model_copy(update={"special_tokens": tuple(NEW)}), tmp_path_factory.mktemp("new") / "tokens"
    )


def make_run(folder: Path, store: TokenStore, chats: Path, tied: bool, model: Any, train: Any) -> Path:
    """A run over a saved model of 400 rows, planned."""
    from data_tools.plan import PlanSettings, make_plan

    tiny_llama(tied).save_pretrained(folder / "base")
    sections = {
        "name": "run",
        "runs": str(folder),
        "model": {"path": str(folder / "base"), "lora": {"rank": 4}, **model},
        "data": {"sources": [{"path": str(chats)}], "tokenizer": {"vocab_size": 400}, "store": str(store.folder)},
        "train": {"packs_per_step": 4, "max_steps": 4, "learning_rate": 1e-2, **train},
        "evaluate": {"samples": ["Hi"], "max_new_tokens": 4},
        "checkpoint": {"every": 2, "keep_last": 5},
    }
    config = RunConfig.model_validate(sections)
    save_run(config)
    settings = PlanSettings.of(config.data.model_copy(update={"max_length": 256}), 4, 0, 1e-3)
    make_plan(store, settings, config.folder / "plan")
    return config.folder


def train_run(world: World, run: str, resuming: bool) -> int:
    """What a rank of a run does."""
    from sft.train import train

    return train(TrainingRun.open(Path(run)), resuming, world, lambda: False)


def losses(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"].hex() for line in lines if "loss" in line]


CASES = {
    "zero 0, tied": (0, True, {}, False),
    "zero 2, tied, new tokens": (2, True, {}, True),
    "zero 3, untied, new tokens": (3, False, {"lora": {"rank": 4, "dropout": 0.1}}, True),
    "zero 3, tied, bfloat16": (3, True, {"dtype": "bfloat16"}, False),
    "zero 2, untied, bfloat16, frozen new tokens": (
        2,
        False,
        {"dtype": "bfloat16", "lora": {"rank": 4, "embeddings": False}},
        True,
    ),
}


SLOW = {"zero 0, tied", "zero 3, tied, bfloat16"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_two_ranks_train_resume_and_export(
    case: str, store: TokenStore, new_store: TokenStore, chat_file: Path, tmp_path: Path
) -> None:
    stage, tied, model, new = CASES[case]
    used = new_store if new else store
    run = make_run(tmp_path, used, chat_file, tied, model, {"zero": {"stage": stage}, "neftune_alpha": 5.0})
    assert run_ranks(2, "tests.sft.test_lora:train_run", run=str(run), resuming=False) == [0, 0]
    without_break = losses(run)
    assert float.fromhex(without_break[-1]) < float.fromhex(without_break[0])

    newest = sorted((run / "checkpoints").iterdir())[-1]
    trained = sum(parameter.numel() for parameter in trained_of(TrainingRun.open(run)))
    state = sum(path.stat().st_size for path in (newest / "state").iterdir())
    whole = 4 * sum(parameter.numel() for parameter in tiny_llama(tied).parameters())
    assert state < 4 * 6 * trained + 60_000  # weights, float32 copies, two moments; the rest is how torch writes files
    if not new:
        assert state - 4 * 3 * trained < whole, "nothing frozen is in a checkpoint"

    for path in sorted((run / "checkpoints").iterdir())[-1:]:
        path.rename(tmp_path / path.name)
    assert run_ranks(2, "tests.sft.test_lora:train_run", run=str(run), resuming=True) == [0, 0]
    assert losses(run) == without_break

    opened = TrainingRun.open(run)
    folder = export_model(opened)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert plain.get_input_embeddings().weight.shape[0] == used.vocab_size
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode("Hi" + (NEW[0] if new else ""))])
    assert plain.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]
    if new and opened.model.lora is not None and opened.model.lora.embeddings is False:
        weight = AutoModelForCausalLM.from_pretrained(tmp_path / "base").get_input_embeddings().weight.bfloat16()
        rows = plain.get_input_embeddings().weight
        mean = weight.mean(0, dtype=torch.float32).bfloat16().float()
        assert torch.equal(rows[400:], mean.expand(len(NEW), -1))

    adapter = export_model(opened, adapter=True)  # compares, too
    names = set(load_file(adapter / "adapter_model.safetensors"))
    assert any("lora_A" in name for name in names)
    assert any("embed_tokens" in name for name in names) == new
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "base"
    )


@pytest.mark.slow
def test_adapters_go_on_with_other_ranks_and_another_stage(
    new_store: TokenStore, chat_file: Path, tmp_path: Path
) -> None:
    """Their checkpoints lack what is frozen: it is not missed where parts are put together anew."""
    run = make_run(tmp_path, new_store, chat_file, True, {}, {"zero": {"stage": 2}})
    assert run_ranks(2, "tests.sft.test_lora:train_run", run=str(run), resuming=False) == [0, 0]
    before = [float.fromhex(loss) for loss in losses(run)]
    sorted((run / "checkpoints").iterdir())[-1].rename(tmp_path / "last")
    text = (run / "run.yaml").read_text()
    assert text.count("stage: 2") == 1
    (run / "run.yaml").write_text(text.replace("stage: 2", "stage: 3"))
    assert run_ranks(1, "tests.sft.test_lora:train_run", run=str(run), resuming=True) == [0]
    assert [float.fromhex(loss) for loss in losses(run)] == pytest.approx(before, rel=1e-5)
    progress = read_progress(sorted((run / "checkpoints").iterdir())[-1])
    assert (progress.ranks, progress.zero_stage) == (1, 3)
    export_model(TrainingRun.open(run))


@pytest.fixture(scope="module")
def earlier(new_store: TokenStore, chat_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of adapters and embeddings, exported; its first loss is not its last."""
    run = make_run(tmp_path_factory.mktemp("earlier"), new_store, chat_file, True, {}, {"zero": {"stage": 0}})
    assert run_ranks(1, "tests.sft.test_lora:train_run", run=str(run), resuming=False) == [0]
    export_model(TrainingRun.open(run), adapter=True)
    return run


def test_a_run_begins_with_the_adapters_of_an_earlier_one(
    earlier: Path, new_store: TokenStore, chat_file: Path, tmp_path: Path
) -> None:
    first = {}
    for stage, ranks in ((0, 1), (3, 2)):
        model = {"lora": {"rank": 4, "start_from": str(earlier / "adapter")}}
        train = {"zero": {"stage": stage}, "max_steps": 2}
        run = make_run(tmp_path / str(stage), new_store, chat_file, True, model, train)
        assert run_ranks(ranks, "tests.sft.test_lora:train_run", run=str(run), resuming=False) == [0] * ranks
        first[stage] = float.fromhex(losses(run)[0])
    assert first[3] == pytest.approx(first[0], rel=1e-6), "ranks without weights get the adapters, too"
    assert first[0] < 0.99 * float.fromhex(losses(earlier)[0])


@pytest.mark.parametrize(
    ("asked", "added", "words"),
    [
        ({"rank": 8}, 2, "it has rank 4, model.lora.rank is 8; set model.lora.rank=4"),
        ({"rank": 4, "alpha": 16}, 2, "it has alpha 32, model.lora.alpha is 16"),
        ({"rank": 4, "target": ["q_proj"]}, 2, "has no place; model.lora.target and embeddings must be what it has"),
        ({"rank": 4, "embeddings": False}, 2, "lm_head.* has no place"),
        ({"rank": 4}, 0, "lm_head.* has no place"),
        (
            {"rank": 4, "embeddings": True},
            0,
            r"(embed_tokens|lm_head).weight has the shape \(402, 32\), the model needs \(400, 32\)",
        ),
        ({"rank": 4, "start_from": "nowhere"}, 2, "nowhere: no adapter_config.json is there"),
    ],
)
def test_other_adapters_are_refused(asked: dict[str, Any], added: int, words: str, earlier: Path) -> None:
    lora = LoraConfig.model_validate({"start_from": str(earlier / "adapter"), **asked})
    model = tiny_llama(tied=True)
    if added:
        model.resize_token_embeddings(402)
    view = add_lora(model, lora, added)
    with pytest.raises(UserError, match=words):
        fill_adapters(view, lora, trains_embeddings(lora, added))


def trained_of(run: TrainingRun) -> list[torch.Tensor]:
    assert run.model.lora is not None
    model = tiny_llama(
        tied=bool(json.loads((Path(str(run.model.path)) / "config.json").read_text())["tie_word_embeddings"])
    )
    add_lora(model, run.model.lora, run.store.added_tokens)
    return [weight for weight in model.parameters() if weight.requires_grad]


def resume_on_another_base(world: World, run: str) -> str:
    try:
        return str(train_run(world, run, resuming=True))
    except UserError as error:
        return str(error)


def test_another_base_is_noticed(store: TokenStore, chat_file: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, store, chat_file, True, {}, {"zero": {"stage": 2}, "max_steps": 2})
    assert run_ranks(1, "tests.sft.test_lora:train_run", run=str(run), resuming=False) == [0]
    other = tiny_llama(tied=True)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(-1)
    other.save_pretrained(tmp_path / "base")
    (said,) = run_ranks(1, "tests.sft.test_lora:resume_on_another_base", run=str(run))
    assert "computes something else than when" in said
    with pytest.raises(UserError, match="logits differ from the trained model's"):
        export_model(TrainingRun.open(run))


def test_another_configuration_is_noticed(store: TokenStore, chat_file: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_llama(tied=True).save_pretrained(base)
    model, train = {"path": str(base), "dtype": "float32"}, {"max_steps": 2, "packs_per_step": 4}
    run = plan_run(tmp_path / "run", store, chat_file, 1, model=model, train=train)
    assert run_ranks(1, "tests.sft.test_lora:train_run", run=str(run), resuming=False) == [0]
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 7.0
    (base / "config.json").write_text(json.dumps(config))
    (said,) = run_ranks(1, "tests.sft.test_lora:resume_on_another_base", run=str(run))
    assert "computes something else than when" in said and "its configuration was changed" in said


def train_on_4_bits(world: World, base: str, folder: str) -> dict[str, Any]:
    """One step of adapters over 4 bits, saved; then the merged model on what the 4 bits stand for.

    All in training mode: in the other, bitsandbytes' layers on some CPUs change to a form without gradients, for good.
    """
    from sft.config import TrainConfig
    from sft.config_model import ModelConfig
    from sft.engine import consolidated_weights, save_engine, start_engine
    from sft.lora import load_trained
    from sft.model import load_model

    config = ModelConfig.model_validate({"path": base, "quantize": "nf4", "lora": {"rank": 4}})
    assert config.lora is not None
    model = load_model(config, None, 400, 0, torch.float32, 0)
    add_lora(model, config.lora, 0)
    train = TrainConfig.model_validate({"packs_per_step": world.size, "learning_rate": 0.1})
    engine = start_engine(PackedCausalLM(model), train, torch.float32, world)
    ids, borders = torch.arange(9)[None], torch.tensor([0, 9], dtype=torch.int32)
    row = (ids, ids.clone(), borders, 9)
    found = []
    for _ in range(2):
        loss, _ = engine(*row, torch.arange(8), ids[0, 1:], None, None)
        found.append(float(loss.detach()))
        engine.backward(loss, scale_wrt_gas=False)
        engine.step()
    save_engine(engine, Path(folder))
    world.barrier()
    weights = {n.removeprefix("model."): w for n, w in consolidated_weights(Path(folder), 2).items()}
    merged = load_model(config, None, 400, 0, torch.float32, 0).dequantize(torch.float32)
    view = add_lora(merged, config.lora, 0)
    load_trained(merged, weights)
    with torch.no_grad():
        difference = (view.merge_and_unload()(ids).logits - engine.module.logits(*row)).abs().max()
    return {"losses": found, "names": list(weights), "difference": float(difference)}


def test_adapters_over_4_bits(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    shape = {**tiny_llama(True).config.to_dict(), "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    AutoModelForCausalLM.from_config(LlamaConfig(**shape)).save_pretrained(tmp_path / "base")
    folders = {"base": str(tmp_path / "base"), "folder": str(tmp_path / "saved")}
    for found in run_ranks(2, "tests.sft.test_lora:train_on_4_bits", **folders):
        assert found["losses"][1] < found["losses"][0]
        assert len(found["names"]) == 28 and all("lora_" in name for name in found["names"])
        assert found["difference"] < 1e-4


def test_4_bits_are_refused_where_they_do_not_run() -> None:
    config = ModelConfig.model_validate({"path": "m", "quantize": "nf4", "lora": {}})
    with pytest.raises(UserError, match=r"model\.quantize: bitsandbytes trains on GPUs only; leave it out"):
        check_quantize(config, 2, torch.device("cpu"))
    with pytest.raises(UserError, match=r"ZeRO-3 does not split weights of 4 bits; set train\.zero\.stage=2"):
        check_quantize(config, 3, torch.device("cuda"))
    check_quantize(ModelConfig.model_validate({"path": "m", "lora": {}}), 3, torch.device("cpu"))
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(UserError, match=r"model\.quantize needs bitsandbytes: pip install"):
            check_packages(config)
