"""Validation: means over all labels of all ranks, not means of means, and one for each source."""

import math
from pathlib import Path

import pytest
import torch

from data_tools.plan import PackPlan, PlanSettings, make_plan
from data_tools.store import StoredDocument, TokenStore
from sft.model import PackedCausalLM
from sft.validate import validate
from sft.world import World
from tests.ranks import run_ranks
from tests.sft.models import documents_of, tiny_llama
from tests.stores import label_weights, random_documents, write_store

VOCABULARY = 60_000
RANKS = 3


def validate_on_rank(world: World, store: str, plan: str) -> dict[str, float]:
    model = PackedCausalLM(tiny_llama(tied=True, vocab_size=VOCABULARY))
    passes: list[None] = []
    metrics = validate(model, TokenStore(Path(store)), PackPlan(Path(plan)), world, lambda: passes.append(None))
    assert model.training and len(passes) == math.ceil(len(PackPlan(Path(plan)).validation) / world.size)
    return metrics


def plan_two_sources(folder: Path, share: float) -> tuple[TokenStore, PackPlan]:
    """Documents of very different lengths and weights, of two sources that are not equally hard to predict."""
    documents = random_documents([*range(2, 60, 2), *range(3, 40, 3)], seed=5, weighted=True)
    sources = [0] * 29 + [1] * (len(documents) - 29)
    store = write_store(folder / "tokens", documents, sources, [0, 1])
    return store, make_plan(store, PlanSettings(64, "drop", share, 2, 1), folder / "plan")


@torch.no_grad()
def sums_alone(store: TokenStore, documents: list[int]) -> tuple[float, float, float, int]:
    """By plain transformers: Σ loss · weight, Σ weight, Σ entropy, tokens predicted rightly of weighted ones."""
    model = tiny_llama(tied=True, vocab_size=VOCABULARY).eval()
    loss = weight = entropy = 0.0
    right = 0
    for number in documents:
        document: StoredDocument = store.document(number)
        ids = torch.tensor(document.input_ids.astype("int64"))
        weights = torch.tensor(label_weights(document))[1:]
        logits = model(ids[None]).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        loss += float((losses * weights).sum())
        weight += float(weights.sum())
        entropy += float(torch.distributions.Categorical(logits=logits[weights > 0]).entropy().sum())
        right += int((logits.argmax(-1) == ids[1:])[weights > 0].sum())
    return loss, weight, entropy, right


@pytest.mark.parametrize("ranks", [1, RANKS])
def test_metrics_are_those_of_each_document_alone(tmp_path: Path, ranks: int) -> None:
    store, plan = plan_two_sources(tmp_path, 0.5)
    metrics, *others = run_ranks(ranks, f"{__name__}:validate_on_rank", store=str(store.folder), plan=str(plan.folder))
    assert all(of_rank == metrics for of_rank in others)
    held_out = documents_of(plan.validation, list(range(len(plan.validation))))
    assert len(plan.validation) % RANKS, "in the last pass some rank has no pack"
    loss, weight, entropy, right = sums_alone(store, held_out)
    labels = int(store.index["trained"][held_out].sum())
    assert metrics["validation_loss"] == pytest.approx(loss / weight, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(loss / weight), rel=1e-4)
    assert metrics["validation_entropy"] == pytest.approx(entropy / labels, rel=1e-5)
    assert metrics["validation_mean_token_accuracy"] == right / labels
    for source in (0, 1):
        loss, weight, _, _ = sums_alone(
            store, [number for number in held_out if store.index["source"][number] == source]
        )
        assert metrics[f"validation_loss/source-{source}"] == pytest.approx(loss / weight, rel=1e-5)


def test_without_validation_packs_there_is_nothing_to_say(tmp_path: Path) -> None:
    store, plan = plan_two_sources(tmp_path, 0.0)
    world = World(0, 1, torch.device("cpu"))
    assert validate(torch.nn.Identity(), store, plan, world, lambda: None) == {}
