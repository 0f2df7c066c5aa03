"""Causal attention within each document of a packed row, as an attention implementation of transformers.

No attention mask is ever built: the borders of the documents are handed to the kernel (CUDA), or the documents are
attended one after the other (elsewhere, and where the kernel has not what a model needs), which costs Σ length² instead
of T². Where ranks share a row, each attends with a part of the heads over the whole of it (`sequence.py`).
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

from data_tools.errors import UserError
from sft.sequence import SequenceGroup, all_heads, all_tokens

PACKED = "shardtune_packed"
"""The name to give to `model.set_attn_implementation`."""
OLDEST_GPU = (8, 0)
"""Compute capability (Ampere's) from which on that kernel runs; V100 and T4 attend document by document."""
LARGEST_HEAD = 256
"""What PyTorch's kernel for rows of several documents takes (flash_api.cpp)."""


def choose_attention(choice: str, config: PretrainedConfig, device: torch.device) -> str:
    """`model.attention` → the name of an implementation of transformers.

    Raises:
        UserError: it does not run on this device.
    """
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    if choice == "auto":
        # The kernel of `packed` cannot cap; one document after the other, scores and all, is for small models.
        return "flex_attention" if capped and device.type == "cuda" else PACKED
    if choice == "packed":
        return PACKED
    if choice != "sdpa" and device.type != "cuda":
        raise UserError(f"model.attention={choice} trains on GPUs only; set model.attention=auto")
    if choice == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError("model.attention=flash_attention_2 needs `pip install flash-attn`; auto needs no package")
    return choice


def check_heads(config: PretrainedConfig, attention: str, size: int) -> None:
    """Whether a model's attention can be shared.

    Raises:
        UserError: it cannot.
    """
    heads = config.get_text_config().num_attention_heads
    if size > 1 and attention != PACKED:
        raise UserError(f"train.sequence_parallel={size} needs model.attention=packed, not {attention}")
    if heads % size:
        raise UserError(f"train.sequence_parallel={size} does not divide the {heads} attention heads of the model")


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    sequence_group: SequenceGroup | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within documents.

    Args:
        query: [1, heads, T, head size]; key and value may have fewer heads.
        attention_mask: must be None, the borders say it all.
        sliding_window: tokens that a token looks back at, itself included.
        softcap: scores are capped by softcap · tanh(scores / softcap).
        s_aux: attention sinks, which are not here.
        cu_seq_lens_q: [D + 1] borders of the documents.
        max_length_q: tokens of the longest document.
        sequence_group: ranks that share the row; T is then this rank's part of it, the borders are the whole row's.

    Returns:
        [1, T, heads, head size]

    Raises:
        UserError: the model wants what is not here.
    """
    if attention_mask is not None or cu_seq_lens_q is None or max_length_q is None:
        raise UserError("this model does not tell its attention where documents end; set model.attention=sdpa")
    if s_aux is not None:
        raise UserError("this model has attention sinks; set model.attention=flex_attention, which needs a GPU")
    if sequence_group is not None:
        query, key, value = (all_tokens(tensor, sequence_group) for tensor in (query, key, value))
    window = None if sliding_window is None or sliding_window >= max_length_q else sliding_window
    if query.is_cuda and dropout == 0.0 and softcap is None and _has_kernel(query, value):
        attended = _varlen(query, key, value, cu_seq_lens_q, max_length_q, scaling, window)
    else:
        lengths = cu_seq_lens_q.diff().tolist()
        documents = zip(*(tensor.split(lengths, 2) for tensor in (query, key, value)), strict=True)
        attended = torch.cat([_document(q, k, v, scaling, dropout, window, softcap) for q, k, v in documents], 2)
        attended = attended.transpose(1, 2).contiguous()
    return (attended if sequence_group is None else all_heads(attended, sequence_group)), None


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether PyTorch's kernel for rows of several documents takes these heads, and runs on this GPU."""
    takes = query.dtype in (torch.bfloat16, torch.float16) and value.shape[-1] <= query.shape[-1] <= LARGEST_HEAD
    return takes and torch.cuda.get_device_capability(query.device) >= OLDEST_GPU


def _document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None,
    dropout: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """[1, heads, length, head size] of one document."""
    if softcap is None:
        mask = None if window is None else _window_mask(query.shape[2], window, query.device)
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
    key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~_window_mask(query.shape[2], window, query.device), -torch.inf)
    probabilities = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return F.dropout(probabilities, dropout) @ value


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """[1, T, heads, head size] by PyTorch's kernel for rows of several documents."""
    from torch.nn.attention.varlen import varlen_attn

    grouped: dict[str, Any] = {}
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            grouped = {"enable_gqa": True}
        else:  # before PyTorch 2.13
            key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
    of_value = value.shape[-1]
    scale = query.shape[-1] ** -0.5 if scale is None else scale  # of the heads as they are
    # [T, heads, head size]
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in even_heads(query, key, value))
    # The tokens seen to the left and to the right; -1: all. Nothing to the right is causal attention.
    sides = (-1 if window is None else window - 1, 0)
    attended = varlen_attn(q, k, v, borders, borders, longest, longest, window_size=sides, scale=scale, **grouped)
    assert isinstance(attended, torch.Tensor)  # not a pair: nothing more was asked for
    return attended[None, ..., :of_value]


def even_heads(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Heads of one size, a multiple of eight, as the kernel wants them: zeros change no score and no result."""
    width = max(tensor.shape[-1] for tensor in tensors)
    width += -width % 8
    # Padding by nothing would be a copy.
    return tuple(t if t.shape[-1] == width else F.pad(t, (0, width - t.shape[-1])) for t in tensors)


def repeat_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """As many heads as queries have, each for a group of neighbours."""
    return tensor.repeat_interleave(heads // tensor.shape[1], 1)


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[length, length], True where a query sees a key: itself and the `window` - 1 tokens before, or all before."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


# No function that makes its masks: with one, transformers looks for packs in the positions, and there waits for the GPU
# at every step.
ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
