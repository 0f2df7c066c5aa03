"""What is proved about masks while a store is made, and counted for its manifest.

content      the learnt text contains each learnt message         every conversation, by `turns.py`
end_of_turn  the end of the last turn is learnt                   every conversation, by `turns.py`
ids          the fast ways give what the tokenizer itself gives   a sample, here
prompt       nothing that asks for a turn is learnt               a sample, here
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_tools.chat import ChatTemplate
from data_tools.chat_text import RenderedChat
from data_tools.encode import Documents, Encoder
from data_tools.errors import UserError
from data_tools.formats import Conversation
from data_tools.readers import WorkUnit
from data_tools.skeleton import FilledChat

SAMPLE = 200
"""Rows that are looked at closely, at least, where there are as many."""
LEAST = 1024
"""One row of so many is looked at, at least."""


def sampled_every(rows: int) -> int:
    """Which rows of a unit are of the sample: the first, then one of so many; `rows` are those of all units."""
    return min(max(rows // SAMPLE, 1), LEAST)


MEANING = {
    "content": "the learnt text contains each learnt message",
    "end_of_turn": "the end of the last turn is learnt",
    "ids": "ids and masks are those of the tokenizer and the template themselves",
    "prompt": "nothing that asks for a turn is learnt",
}


_WHY_NOT = {
    "everything": "data.train_on=all learns every token",
    "endless": "data.train_end_of_turn=false does not learn it",
    "rewritten": "the template rewrites earlier turns or refuses a conversation that ends with its question",
    "no_chat": "no row that was looked at is a chat",
}
"""Why a proof says nothing about a conversation; counted beside the proofs."""

_MAY_NOT_APPLY = {
    "content": ("everything", "no_chat"),
    "end_of_turn": ("everything", "endless", "no_chat"),
    "ids": ("no_chat",),
    "prompt": ("everything", "rewritten", "no_chat"),
}


class Proofs:
    """Makes the proofs of one unit of work.

    Args:
        template: whose fast ways are compared with that of transformers.
        encoder: whose fast way is compared with the tokenizer.
        unit: for messages.
    """

    def __init__(self, template: ChatTemplate, encoder: Encoder, unit: WorkUnit) -> None:
        self._template = template
        self._encoder = encoder
        self._unit = unit
        self._ids = self._prompt = 0
        self._looked_at: dict[int, list[RenderedChat]] = {}

    def counts(self, conversations: int) -> dict[str, int]:
        """How often each proof was made in a unit of so many rendered conversations, or said nothing and why."""
        learning = self._template.learning
        everything, endless = learning.train_on == "all", not learning.train_end_of_turn
        return {
            "content": 0 if everything else conversations,
            "end_of_turn": 0 if everything or endless else conversations,
            "ids": self._ids,
            "prompt": self._prompt,
            "everything": conversations if everything else 0,
            "endless": conversations if endless else 0,
            "rewritten": 0 if everything else self._ids - self._prompt,
        }

    def look(self, position: int, conversation: Conversation, chats: Sequence[RenderedChat | FilledChat]) -> None:
        """Look closely at a conversation of the sample; its tokens are compared once they are there.

        Raises:
            UserError: a proof fails: nothing that was made can be trusted.
        """
        slow = self._template.render_by_transformers(conversation)
        if [each.rendered() if isinstance(each, FilledChat) else each for each in chats] != slow:
            raise UserError(
                f"{self._row(position)}: the compiled template does not write what transformers writes; report this"
            )
        self._looked_at[position] = slow
        try:
            self._prompt += self._template.prove_prompt(conversation)
        except UserError as error:
            raise UserError(f"{self._row(position)}: {error}") from None

    def compare(self, documents: Documents, positions: NDArray[np.int64]) -> None:
        """Compare the tokens of conversations of the sample with those of the tokenizer itself.

        Args:
            documents: what becomes part of the store.
            positions: [documents] the row of each in its unit, ascending.

        Raises:
            UserError: they are not the same.
        """
        for position, chats in self._looked_at.items():
            first = int(np.searchsorted(positions, position))
            for number, chat in enumerate(chats, start=first):
                self._compare_one(position, documents, number, chat)
        self._ids += len(self._looked_at)
        self._looked_at = {}

    def _compare_one(self, position: int, documents: Documents, number: int, chat: RenderedChat) -> None:
        assert number < len(documents), "the documents of a row are in one batch"
        expected_ids, expected_mask = self._encoder.encode_alone(chat)
        start, end = documents.offsets[number : number + 2]
        if not np.array_equal(documents.ids[start:end], expected_ids):
            raise UserError(
                f"{self._row(position)}: the encoder's ids are not the tokenizer's; set data.encoder=tokenizers"
            )
        if not np.array_equal(documents.mask(number), expected_mask):
            raise UserError(f"{self._row(position)}: the mask is not that of the tokenizer's offsets; report this")

    def _row(self, position: int) -> str:
        return f"row {self._unit.first_row + position} of {self._unit.file}"


def proof_report(counts: list[dict[str, int]], conversations: int) -> dict[str, dict[str, object]]:
    """The manifest's `proofs`: what was proved for how many conversations; `not_applicable` says why for none."""
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    report: dict[str, dict[str, object]] = {}
    for name, text in MEANING.items():
        report[name] = {"checked": total[name], "of": conversations, "text": text}
        if not total[name]:
            why = next((why for why in _MAY_NOT_APPLY[name] if total[why]), "no_chat")
            report[name]["not_applicable"] = _WHY_NOT[why]
    return report
