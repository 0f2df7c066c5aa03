"""Exact counts by source; the choice depends on contents and seed alone; held-out documents never move or leak."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.lengths import Index
from data_tools.mixture import Mixture, mix, source_facts
from data_tools.plan import PlanSettings, SourceShare
from launcher.config import load_run

RECIPE = Path(__file__).parent.parent.parent / "configs" / "recipes" / "smollm3_sft.yaml"
PUBLISHED_ROWS = {
    "smoltalk_smollm3_everyday_conversations_no_think": 2_260,
    "smoltalk_smollm3_systemchats_30k_no_think": 33_997,
    "tulu_3_sft_personas_instruction_following_no_think": 29_970,
    "hermes_function_calling_v1_no_think": 8_961,
    "smoltalk_smollm3_smol_magpie_ultra_no_think": 406_843,
    "smoltalk_multilingual_8languages_lang_5_no_think": 254_047,
    "table_gpt_no_think": 13_203,
    "OpenHermes_2.5_no_think": 384_900,
    "OpenThoughts3_1.2M_no_think_no_think": 435_193,
    "Mixture_of_Thoughts_science_no_think": 86_110,
    "smoltalk_smollm3_explore_instruct_rewriting_no_think": 30_391,
    "smoltalk_smollm3_smol_rewrite_no_think": 53_262,
    "smoltalk_smollm3_smol_summarize_no_think": 96_061,
    "LongAlign_64k_context_lang_annotated_lang_6_no_think": 6_249,
    "multi_turn_reasoning_if_think": 28_217,
    "smoltalk_everyday_convs_reasoning_Qwen3_32B_think": 2_057,
    "smoltalk_systemchats_Qwen3_32B_think": 27_436,
    "xlam_traces_no_think": 59_962,
    "smolagents_toolcalling_traces_think": 9_079,
    "s1k_1.1_think": 835,
    "LongAlign_64k_Qwen3_32B_yarn_131k_think": 7_526,
    "aya_dataset_Qwen3_32B_think": 15_222,
    "smoltalk_multilingual8_Qwen3_32B_think": 244_736,
    "OpenThoughts3_1.2M_think": 1_133_524,
    "table_gpt_Qwen3_32B_think": 13_201,
}
"""The card of HuggingFaceTB/smoltalk2, configuration SFT."""


def settings(fraction: float = 0.0, **others: Any) -> PlanSettings:
    return PlanSettings(100, "drop", fraction, 8, **{"seed": 0, **others})


def index_of(rows: list[int], seed: int = 0) -> Index:
    """Documents of several sources, with hashes and lengths up to 120; nothing else decides the mixture."""
    random = np.random.default_rng(seed)
    count = sum(rows)
    return {
        "length": random.integers(1, 121, count).astype(np.int32),
        "source": np.repeat(np.arange(len(rows), dtype=np.int16), rows),
        "digest": random.integers(0, 2**64, count, dtype=np.uint64),
    }


def mixed(index: Index, shares: list[SourceShare], chosen: PlanSettings) -> tuple[Mixture, Any]:
    index = {"conversation": index["digest"], **index}  # one document each, unless a test says otherwise
    tokens = np.where(index["length"] <= chosen.max_length, index["length"], 0).astype(np.int64)
    mixture = mix(index, tokens, shares, chosen)
    return mixture, source_facts(index, tokens, mixture, [str(number) for number in range(len(shares))])


def test_the_recipe_takes_what_smollm3_was_trained_on() -> None:
    config = load_run(str(RECIPE), [])
    chosen = PlanSettings.of(config.data, config.train.packs_per_step, config.train.seed)
    rows = [PUBLISHED_ROWS[source.split or ""] for source in config.data.sources]
    assert len(rows) == len(PUBLISHED_ROWS) == 25
    index = index_of(rows)
    _, sources = mixed(index, chosen.sources, chosen)
    assert sum(source["documents"] for source in sources) == 3_383_242
    assert sum(source["taken_documents"] for source in sources) == 1_444_084
    assert sum(source["validation"] for source in sources) == 0


SHARES = st.builds(
    SourceShare,
    weight=st.floats(0.01, 3.5),
    max_rows=st.none() | st.integers(1, 60),
    max_tokens=st.none() | st.integers(1, 5_000),
)


@given(st.integers(1, 40), SHARES, st.sampled_from(["rows", "tokens"]), st.integers(0, 5))
def test_weights_and_caps_count_exactly(rows: int, share: SourceShare, weights_by: str, seed: int) -> None:
    index = index_of([rows], seed)
    index["length"] = np.minimum(index["length"], 100)
    mixture, (facts,) = mixed(index, [share], settings(weights_by=weights_by, seed=seed))
    times = mixture.times.astype(int)
    assert times.max() - times.min() <= 1
    assert facts["taken_documents"] == times.sum()
    assert facts["taken_tokens"] == (times * index["length"]).sum()
    total = int(index["length"].sum())
    limits = [(total * share.weight) if weights_by == "tokens" else np.inf, share.max_tokens or np.inf]
    if min(limits) == np.inf:
        whole = int(round(rows * share.weight, 6))  # 0.29 of 100 rows are 29, though 0.29 * 100 is less
        assert facts["taken_documents"] == min(whole, share.max_rows or 10**9)
    assert facts["taken_documents"] <= (share.max_rows or np.inf)
    assert facts["taken_tokens"] <= min(limits)
    if weights_by == "tokens" and not share.max_rows:  # no further document fits, whichever is next
        assert facts["taken_tokens"] + index["length"].max() >= int(min(limits))


@pytest.mark.parametrize(
    ("rows", "weight", "taken"),
    [
        (100, 0.29, 29),  # 0.29 * 100 is 28.999999999999996
        (100, 0.57, 57),
        (1_000, 0.001, 1),
        (100, 1.15, 115),  # 114.99999999999999
        (3, 0.5, 1),  # a part of a document is not taken
        (10, 0.29, 2),
        (10, 2.99, 29),
    ],
)
def test_weights_are_multiples_of_rows_as_people_write_them(rows: int, weight: float, taken: int) -> None:
    index = index_of([rows])
    index["length"][:] = 10
    _, (facts,) = mixed(index, [SourceShare(weight)], settings())
    assert facts["taken_documents"] == taken


def test_the_choice_depends_on_contents_and_seed_alone() -> None:
    index = index_of([300, 200])
    half = SourceShare(0.5)

    def taken(index: Index, shares: list[SourceShare], source: int, **others: Any) -> set[int]:
        mixture, _ = mixed(index, shares, settings(**others))
        return set(index["digest"][(mixture.times > 0) & (index["source"] == source)].tolist())

    first = taken(index, [half, half], 0)
    order = np.random.default_rng(1).permutation(500)
    assert taken({name: column[order] for name, column in index.items()}, [half, SourceShare(2)], 0) == first
    alone = {name: column[:300] for name, column in index.items()}
    assert taken(alone, [half], 0) == first
    assert taken(index, [half, half], 0, seed=1) != first
    assert taken(index, [SourceShare(0.7), half], 0) > first, "a greater weight takes more, not others"


@pytest.mark.parametrize("held_out", [{"fraction": 0.1}, {"validation_count": 50}])
def test_held_out_documents_do_not_move_with_weights_seed_or_sources(held_out: dict[str, Any]) -> None:
    index = index_of([300, 200])
    index["length"] = np.minimum(index["length"], 100)
    index["digest"][300:320] = index["digest"][:20]  # the same conversations in both
    expected: set[int] | None = None
    for shares, seed in [((1.0, 1.0), 0), ((0.1, 2.5), 1)]:
        mixture, facts = mixed(index, [SourceShare(weight) for weight in shares], settings(**held_out, seed=seed))
        held = set(index["digest"][mixture.validation].tolist())
        assert held == (expected or held)
        expected = held
        assert not held & set(index["digest"][mixture.times > 0].tolist())
        assert 30 <= mixture.validation.sum() <= 70
        assert mixture.times[mixture.validation].sum() == 0
        for source in facts:
            assert source["taken_documents"] == int(
                (source["documents"] - source["validation"]) * shares[int(source["name"])]
            )


def test_a_validation_count_is_reached_and_never_splits_equal_documents() -> None:
    index = index_of([100])
    index["length"][:] = 10
    index["digest"][:] = np.repeat(np.sort(index["digest"][:25]), 4)
    for count, expected in [(0, 0), (1, 4), (4, 4), (5, 8), (1_000, 100)]:
        mixture, _ = mixed(index, [SourceShare()], settings(validation_count=count))
        assert mixture.validation.sum() == expected
        assert mixture.validation[:expected].all()


def test_a_fraction_looks_at_the_content_alone() -> None:
    index = index_of([1_000])
    mixture, _ = mixed(index, [SourceShare()], settings(0.25))
    low = index["digest"] < np.uint64(2**62)
    assert (mixture.validation == (low & (index["length"] <= 100))).all()


def test_duplicates_are_left_out_across_sources_before_weights() -> None:
    index = index_of([100, 100])
    index["length"][:] = 10
    index["digest"][100:180] = index["digest"][:80]
    _, facts = mixed(index, [SourceShare(), SourceShare(0.5)], settings(deduplicate=True))
    assert [source["taken_documents"] for source in facts] == [100, 10]
    assert [source["duplicate"] for source in facts] == [0, 80]
    _, facts = mixed(index, [SourceShare(), SourceShare(0.5)], settings())
    assert [source["taken_documents"] for source in facts] == [100, 50]


@given(st.lists(SHARES, min_size=1, max_size=3), st.booleans(), st.floats(0, 0.5))
def test_every_document_is_taken_held_out_or_left_out_for_one_reason(
    shares: list[SourceShare], deduplicate: bool, fraction: float
) -> None:
    index = index_of([30] * len(shares))
    index["digest"] = index["digest"] // np.uint64(2**58) * np.uint64(2**58)  # many equal ones
    mixture, facts = mixed(index, shares, settings(fraction, deduplicate=deduplicate))
    places = np.stack([mixture.times > 0, mixture.validation, *mixture.left_out.values()])
    assert (places.sum(axis=0) == 1).all()
    assert sum(source["too_long"] for source in facts) == (index["length"] > 100).sum()


def test_documents_of_one_conversation_are_held_out_together() -> None:
    """`on_rewrite: split_turns` makes several documents of a row, and they share their turns."""
    index = index_of([400])
    index["length"][:] = 10
    index["conversation"] = np.repeat(index["digest"][3::4], 4)
    for chosen in (settings(0.3), settings(0, validation_count=50)):
        mixture, _ = mixed(index, [SourceShare()], chosen)
        held = mixture.validation.reshape(-1, 4)
        assert 0 < held.any(axis=1).sum() < 100
        assert (held.all(axis=1) == held.any(axis=1)).all()
