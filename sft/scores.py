"""Greedy answers to held-out conversations, and how near they are to what is written there.

BLEU (sacrebleu) and ROUGE-L (rouge-score) compare words. What a word is depends on the language: text with Chinese
characters is counted by characters, all other by words and punctuation, for both scores; the signature says which.
"""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_tools.errors import UserError
from data_tools.plan import PackPlan
from data_tools.store import StoredDocument, TokenStore
from sft.answers import continue_ids

_CHINESE = re.compile("[\u3400-\u9fff]")


@dataclass(frozen=True)
class Answered:
    """One held-out document, its last learnt part against what the model says there."""

    document: int
    prompt: str
    reference: str
    answer: str
    ended: bool
    """Whether the model came to an end within the tokens it was given."""


def check_scores() -> None:
    """Say what is missing before anything is loaded.

    Raises:
        UserError: a package is not installed.
    """
    missing = [name for name in ("sacrebleu", "rouge_score") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--answers needs {' and '.join(missing)}: pip install 'shardtune[score]'")


def choose_documents(store: TokenStore, plan: PackPlan, count: int) -> list[int]:
    """Held-out documents that have a prompt before their last learnt part, spread evenly over the store.

    Raises:
        UserError: there are none.
    """
    table = plan.validation
    held_out = sorted({int(number) for pack in range(len(table)) for number in table.packs[pack]})
    whole = [number for number in held_out if _last_run(store.document(number))[0] > 0]
    if not whole:
        raise UserError("--answers needs held-out conversations, and the plan has none; set data.validation")
    spread = np.linspace(0, len(whole) - 1, min(count, len(whole))).round().astype(int)
    return [whole[place] for place in spread.tolist()]


def answer_documents(
    model: Any, tokenizer: Any, store: TokenStore, documents: Sequence[int], ends: list[int], max_new_tokens: int
) -> list[Answered]:
    """Let the model say what follows the prompt of each document; model as of plain transformers, in evaluation mode.

    Raises:
        UserError: the model has not the positions for a prompt and its answer.
    """
    answers = []
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number in documents:
        stored = store.document(number)
        start, end = _last_run(stored)
        if positions is not None and start + max_new_tokens > positions:
            raise UserError(
                f"document {number}: a prompt of {start:,} tokens and evaluate.max_new_tokens={max_new_tokens} are "
                f"more than the {positions:,} positions of the model; lower evaluate.max_new_tokens"
            )
        ids = stored.input_ids.astype(np.int64)
        prompt = torch.from_numpy(ids[:start])[None].to(model.device)
        new_ids = continue_ids(model, tokenizer, prompt, ends, max_new_tokens).tolist()
        answers.append(
            Answered(
                number,
                prompt=str(tokenizer.decode(ids[:start])),
                reference=str(tokenizer.decode(ids[start:end], skip_special_tokens=True)).strip(),
                answer=str(tokenizer.decode(new_ids, skip_special_tokens=True)).strip(),
                ended=new_ids[-1] in ends,
            )
        )
    return answers


def score(answers: Sequence[Answered]) -> dict[str, Any]:
    """bleu: of the corpus, 0 to 100; rouge_l: mean F-measure, 0 to 1; the signature of the former; how many ended."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer
    from sacrebleu.metrics import BLEU

    chinese = sum(bool(_CHINESE.search(answered.reference)) for answered in answers)
    bleu = BLEU(tokenize="zh" if 2 * chinese >= len(answers) else "13a")

    class SameWords(Tokenizer):  # type: ignore[misc]
        """Its own drops all that is not a to z."""

        def tokenize(self, text: str) -> list[str]:
            return str(bleu.tokenizer(text)).lower().split()

    rouge = RougeScorer(["rougeL"], tokenizer=SameWords())
    told, references = [answered.answer for answered in answers], [answered.reference for answered in answers]
    of_each = [
        rouge.score(reference, text)["rougeL"].fmeasure for reference, text in zip(references, told, strict=True)
    ]
    return {
        "bleu": float(bleu.corpus_score(told, [references]).score),
        "rouge_l": float(np.mean(of_each)),
        "answers": len(answers),
        "ended": sum(answered.ended for answered in answers),
        "signature": str(bleu.get_signature()),
    }


def _last_run(document: StoredDocument) -> tuple[int, int]:
    """Where the last learnt part of a document starts and ends; 0 where it is the first of all, or there is none."""
    borders = np.cumsum(document.mask_runs)
    learnt = len(document.mask_runs) // 2 * 2 - 1
    return (int(borders[learnt - 1]), int(borders[learnt])) if learnt > 0 else (0, 0)
