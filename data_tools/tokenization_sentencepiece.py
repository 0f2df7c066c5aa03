"""A tokenizer over a SentencePiece model. This file is copied into every folder where such a tokenizer is saved.

`AutoTokenizer` loads such a folder with transformers' own `SentencePieceBackend`, which gives the same ids but shows
bytes of unknown characters as `<0x0A>` when it decodes; with `trust_remote_code=True` it takes this class.
"""

from itertools import groupby
from typing import ClassVar

from transformers import SentencePieceBackend


class SentencePieceTokenizer(SentencePieceBackend):  # type: ignore[misc, unused-ignore]  # transformers has no types
    """transformers' own, which decodes what it encodes."""

    _auto_class: ClassVar[str] = "AutoTokenizer"  # saved with this file, and named in `auto_map`

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens, as SentencePiece itself decodes them between control tokens."""
        added = self.added_tokens_encoder.keys() - {self.unk_token}
        runs = groupby(tokens, key=added.__contains__)
        return "".join("".join(run) if control else self.sp_model.decode(list(run)) for control, run in runs)
