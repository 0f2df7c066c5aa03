"""How near answers are to what is written: sacrebleu's and rouge-score's numbers, also where words have no spaces."""

from pathlib import Path

import numpy as np
import pytest

from data_tools.errors import UserError
from data_tools.plan import PlanSettings, make_plan
from data_tools.store import StoredDocument, TokenStore
from sft.scores import Answered, choose_documents, score
from tests.sft.test_validate import plan_two_sources
from tests.stores import write_store


def answered(reference: str, answer: str, ended: bool = True) -> Answered:
    return Answered(0, "", reference, answer, ended)


def test_scores_are_those_of_the_libraries() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu

    references = ["the cat sat on the mat today", "it rained all day long in the north"]
    answers = ["the cat lay on the mat today", "it rained nearly all day in the north"]
    found = score([answered(references[0], answers[0]), answered(references[1], answers[1], ended=False)])
    assert found["bleu"] == pytest.approx(corpus_bleu(answers, [references]).score)
    rouge = RougeScorer(["rougeL"])
    each = [rouge.score(*pair)["rougeL"].fmeasure for pair in zip(references, answers, strict=True)]
    assert found["rouge_l"] == pytest.approx(np.mean(each))
    assert (found["answers"], found["ended"]) == (2, 1) and "tok:13a" in found["signature"]


def test_chinese_is_counted_by_characters() -> None:
    found = score(
        [answered("今天天气很好我们去公园", "今天天气很好我们回家吧"), answered("谢谢你的帮助", "谢谢你的帮助")]
    )
    assert 20 < found["bleu"] < 100 and 0.8 < found["rouge_l"] < 1
    assert "tok:zh" in found["signature"]
    assert score([answered("今天天气", "明日下雨")])["rouge_l"] == 0


def test_held_out_documents_with_a_prompt_are_spread_over_the_store(tmp_path: Path) -> None:
    store, plan = plan_two_sources(tmp_path, 0.5)
    held_out = set(np.concatenate([np.asarray(plan.validation.packs[n]) for n in range(len(plan.validation))]).tolist())
    chosen = choose_documents(store, plan, 4)
    assert len(set(chosen)) == 4 and set(chosen) <= held_out and chosen == sorted(chosen)
    everything = choose_documents(store, plan, 10_000)
    assert (chosen[0], chosen[-1]) == (everything[0], everything[-1])
    assert all(begins_with_prompt(store, number) == (number in everything) for number in held_out)


def begins_with_prompt(store: TokenStore, number: int) -> bool:
    """Whether something is not learnt before what is learnt last."""
    learnt = np.repeat(np.arange(len(store.document(number).mask_runs)) % 2, store.document(number).mask_runs)
    return not learnt[: np.flatnonzero(np.diff(learnt, prepend=0) == 1)[-1] + 1].all()


def test_texts_without_prompts_have_no_answers(tmp_path: Path) -> None:
    documents = [
        StoredDocument(np.arange(n, n + 9).astype(np.uint16), np.array([0, 9], np.int32), None) for n in range(20)
    ]
    store = write_store(tmp_path / "tokens", documents, [0] * 20, [0])
    plan = make_plan(store, PlanSettings(64, "drop", 0.5, 2, 1), tmp_path / "plan")
    with pytest.raises(UserError, match="needs held-out conversations"):
        choose_documents(store, plan, 3)
