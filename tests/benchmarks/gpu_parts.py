"""Parts of a step alone: the loss head against its three matrix products, attention against its operations."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from sft.attention import packed_attention
from sft.flops import peak_of_name
from sft.loss import CHUNK_LOGITS, LogitForm, TrainedTokensLoss

Documents = list[tuple[np.ndarray[Any, Any], int]]
"""(ids, untrained tokens at the start) of each."""


def seconds_of(work: Callable[[], None], device: torch.device, times: int = 7) -> float:
    """The median after a first time; on a GPU until it has done everything."""

    def once() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    once()
    return sorted(once() for _ in range(times))[times // 2]


def loss_head(config: LlamaConfig, documents: Documents, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Losses and gradients of all trained positions; and the products alone, in chunks of the same size."""
    trained = sum(len(ids) - max(untrained, 1) for ids, untrained in documents)
    hidden, weight = (
        torch.randn(rows, config.hidden_size, dtype=dtype, device=device, requires_grad=True)
        for rows in (trained, config.vocab_size)
    )
    labels = torch.randint(0, config.vocab_size, (trained,), device=device)
    chunk = min(trained, max(16, CHUNK_LOGITS[device.type] // config.vocab_size))
    logits = torch.empty(chunk, config.vocab_size, dtype=dtype, device=device)
    summed = torch.zeros_like(weight)

    def ours() -> None:
        loss, _ = TrainedTokensLoss.apply(hidden, weight, None, labels, None, LogitForm(), True)  # type: ignore[no-untyped-call]
        loss.backward()
        hidden.grad = weight.grad = None

    @torch.no_grad()
    def products() -> None:
        for start in range(0, trained, chunk):
            rows = hidden[start : start + chunk]
            torch.mm(rows, weight.t(), out=logits[: len(rows)])
            torch.mm(logits[: len(rows)], weight)
            summed.addmm_(logits[: len(rows)].t(), rows)

    seconds, alone = seconds_of(ours, device), seconds_of(products, device)
    return {"trained": trained, "seconds": seconds, "products_seconds": alone, "share_of_products": alone / seconds}


def attention(config: LlamaConfig, documents: Documents, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """One layer's attention, forward and backward, and the operations that documents apart need: causal scores and
    their sums, 2 · width · Σ length² forward, and 2.5 times that backward, which computes the scores again.
    """
    lengths = [len(ids) for ids, _ in documents]
    size = config.hidden_size // config.num_attention_heads
    shapes = [(1, heads, sum(lengths), size) for heads in (config.num_attention_heads, config.num_key_value_heads)]
    query, key, value = (
        torch.randn(shapes[which], dtype=dtype, device=device, requires_grad=True) for which in (0, 1, 1)
    )
    borders = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    gradient = torch.randn(1, sum(lengths), config.num_attention_heads, size, dtype=dtype, device=device)

    def both() -> None:
        attended, _ = packed_attention(
            torch.nn.Module(), query, key, value, None, cu_seq_lens_q=borders, max_length_q=max(lengths)
        )
        attended.backward(gradient)
        query.grad = key.grad = value.grad = None

    seconds = seconds_of(both, device)
    operations = 3.5 * 2 * config.hidden_size * float(np.square(np.array(lengths, np.float64)).sum())
    peak = peak_of_name(torch.cuda.get_device_name()) if device.type == "cuda" else None
    return {
        "documents": len(lengths),
        "seconds": seconds,
        "tflops": operations / seconds / 1e12,
        "share_of_peak": operations / seconds / peak if peak else None,
    }
