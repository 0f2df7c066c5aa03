"""The tokenizer of a store: loaded from a folder or hub id, or trained on the sources."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data_tools.chat_text import RenderedChat
from data_tools.errors import RowError, UserError
from data_tools.files import is_hub_id, near_path
from data_tools.formats import PlainText
from data_tools.literals import ControlTokens, without_marks
from data_tools.piece_models import (
    SAVED_CLASS,
    agrees,
    find_piece_model,
    load_piece_tokenizer,
    piece_digest,
    tokenizer_settings,
)
from data_tools.template_choice import ANY_TEMPLATE, choose_template
from data_tools.template_choice import CHATML as CHATML
from data_tools.tokenization_sentencepiece import SentencePieceTokenizer

_REFUSING = f"{{{{ raise_exception('there is none; set data.chat_template to {ANY_TEMPLATE}') }}}}"


def load_tokenizer(
    name: str, chat_template: str | None = None, texts: Iterable[str] = (), chats_in: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer with its chat template, if it has one.

    Args:
        name: a folder or hub id, or a SentencePiece model.
        chat_template: a Jinja file that replaces the tokenizer's own template.
        texts: of the data; a tokenizer that is converted from a SentencePiece model must agree with it on some.
        chats_in: a source that has conversations, which need a template.

    Raises:
        UserError: there is no tokenizer, or it has no template and conversations need one.
    """
    if not Path(name).exists() and not is_hub_id(name):
        raise UserError(
            f"data.tokenizer: there is no folder {name}{near_path(name)}, and it is not the id of a hub (owner/name); "
            f"check the path"
        )
    tokenizer = _over_pieces(name, model, texts) if (model := find_piece_model(name)) else _load(name)
    if not tokenizer.is_fast and not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(f"data.tokenizer: {name} has no fast form (tokenizer.json); save it in its fast form first")
    tokenizer.chat_template = choose_template(tokenizer.chat_template, chat_template, name, chats_in)
    return tokenizer


def _load(name: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"data.tokenizer: cannot load {name}: {reason} Give a folder with tokenizer.json.") from None


def _over_pieces(name: str, model: Path, texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """The fast form that the folder's own class makes of a SentencePiece model, or the model itself."""
    over_pieces, settings = load_piece_tokenizer(name, model), tokenizer_settings(name)
    if settings.get("tokenizer_class", SAVED_CLASS) != SAVED_CLASS:
        converted = _load(name)
        if not converted.is_fast or agrees(converted, over_pieces, texts):
            return converted
    if settings.get("legacy") is False:
        raise UserError(
            f"data.tokenizer: {name} has no tokenizer.json, and says legacy: false, of which transformers has no form "
            f"that agrees with SentencePiece; save it with tokenizer.json where it was made"
        )
    return over_pieces


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Give the tokenizer the control tokens of `data.special_tokens`, with the ids after its last one.

    Raises:
        UserError: it has one of them, or one is given twice.
    """
    if not tokens:
        return
    known = set(tokenizer.get_vocab())
    for token in tokens:
        if token in known:
            raise UserError(f"data.special_tokens: {token!r} is in the vocabulary already; leave it out")
        known.add(token)
    before = vocabulary_size(tokenizer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    if vocabulary_size(tokenizer) != before + len(tokens):
        raise UserError("data.special_tokens: ids of this vocabulary have gaps, so that nothing can be put after them")


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template to render with. Where a tokenizer has none, conversations are refused, and what a model is asked is
    plain text that it goes on with.
    """
    if tokenizer.chat_template is not None:
        return str(tokenizer.chat_template)
    start = "{{ bos_token }}" if begins_texts(tokenizer) else ""
    return f"{{% if add_generation_prompt %}}{start}{{{{ messages[-1].content }}}}{{% else %}}{_REFUSING}{{% endif %}}"


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with ChatML control tokens: any text can be encoded, nothing is unknown.

    Args:
        texts: message contents.
        vocab_size: entries, control tokens included.
    """
    control_tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=control_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        model_max_length=1_000_000,
    )


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that the tokenizer reads as one special token."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def begins_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it begins a text with a token of its own, as long as no `Encoder` has told it to add nothing."""
    return tokenizer.bos_token is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


class PlainTextFrame:
    """Text without a template, between the tokens with which the tokenizer begins and ends a text.

    Args:
        tokenizer: as it was loaded: an `Encoder` tells its tokenizer to add nothing.
        handling: of control tokens in texts, `data.control_tokens`.
        train_end_of_turn: whether the end of a text is learnt.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, handling: str = "keep", train_end_of_turn: bool = True
    ) -> None:
        self._start = tokenizer.bos_token if begins_texts(tokenizer) else ""
        self._end = tokenizer.eos_token or ""
        self._unlearnt = "" if train_end_of_turn else self._end
        self._escapes = handling == "escape"
        known = control_tokens(tokenizer)
        self._control = ControlTokens(known) if known and handling != "keep" else None

    def render(self, plain: PlainText, everything: bool) -> RenderedChat:
        """The text of a document; the completion and its end are learnt, or the prompt, too, where `everything` is.

        Raises:
            RowError: the text is no Unicode, or has a control token that is not to be there.
        """
        prompt, completion = self._guarded(plain)
        start = "" if (prompt or completion).startswith(self._start) else self._start
        end = "" if completion.endswith(self._end) else self._end
        text = start + prompt + completion + end
        learnt = (0, len(text)) if everything else (len(start + prompt), len(text.removesuffix(self._unlearnt)))
        literals: list[tuple[int, int]] = []
        if self._escapes:
            text, [learnt], literals = without_marks(text, [learnt])
        try:
            borders = [len(text[:place].encode()) for span in (learnt, *literals) for place in span]
            encoded = text.encode()
        except UnicodeEncodeError:
            raise RowError("the text has half of a surrogate pair, which is no Unicode text") from None
        spans = list(zip(borders[::2], borders[1::2], strict=True))
        is_learnt = bool((prompt + completion).strip()) and borders[0] < borders[1]
        return RenderedChat(encoded, spans[:1] if is_learnt else [], literals=tuple(spans[1:]))

    def _guarded(self, plain: PlainText) -> tuple[str, str]:
        """Refuse control tokens in the texts, or mark them so that they stay text."""
        texts = plain.prompt, plain.completion
        if self._control is None:
            return texts
        if self._escapes:
            return self._control.marked(texts[0]), self._control.marked(texts[1])
        self._control.refuse(texts)
        return texts


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of what decides the ids: vocabulary, merges, normalisation, control tokens (not truncation settings)."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return piece_digest(tokenizer)
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    digest = hashlib.sha256(backend.to_str().encode()).hexdigest()
    if truncation:
        backend.enable_truncation(**truncation)
    if padding:
        backend.enable_padding(**padding)
    return digest


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows that an embedding needs: ids may have gaps."""
    return int(max(tokenizer.get_vocab().values())) + 1
