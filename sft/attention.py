"""Causal attention within each document of a packed row, as an attention implementation of transformers.

No attention mask is ever built: the borders of the documents are handed to the kernel (CUDA), or the documents are
attended one after the other (elsewhere), which costs Σ length² instead of T².
"""

from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PACKED = "shardtune_packed"
"""The name to give to `model.set_attn_implementation`."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within documents.

    Args:
        query: [1, heads, T, head size]; key and value may have fewer heads.
        attention_mask: must be None, the borders say it all.
        sliding_window: tokens that a token looks back at, itself included.
        cu_seq_lens_q: [D + 1] borders of the documents.
        max_length_q: tokens of the longest document.

    Returns:
        [1, T, heads, head size]
    """
    assert attention_mask is None and cu_seq_lens_q is not None and max_length_q is not None
    assert others.get("s_aux") is None and others.get("softcap") is None, "attention sinks and soft caps are not here"
    whole = sliding_window is None or sliding_window >= max_length_q
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0 and whole:
        return _varlen(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    lengths = cu_seq_lens_q.diff().tolist()
    attended = [
        F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if whole else _window_mask(q.shape[2], int(sliding_window or 0), q.device),
            is_causal=whole,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for q, k, v in zip(*(torch.split(tensor, lengths, 2) for tensor in (query, key, value)), strict=True)
    ]
    return torch.cat(attended, 2).transpose(1, 2).contiguous(), None


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    borders: torch.Tensor,
    longest: int,
    scale: float | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    q, k, v = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))  # [T, heads, head size]
    # A window that is open to the left and closed to the right is causal attention.
    attended = varlen_attn(q, k, v, borders, borders, longest, longest, window_size=(-1, 0), scale=scale)
    assert isinstance(attended, torch.Tensor)  # not a pair: nothing more was asked for
    return attended[None]


def _window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, length], True where a query sees a key: itself and the `window` - 1 tokens before."""
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None]
    return (distance >= 0) & (distance < window)


# No function that makes its masks: with one, transformers looks for packs in the positions, and waits for the GPU there.
ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
