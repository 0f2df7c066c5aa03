"""Cross-entropy on trained positions only, and the equation that scales it.

With S the sum of cross-entropies over the trained tokens of one micro-batch on one rank, each times its weight (1
unless the data says otherwise), W ranks, and N the sum of the weights of the whole optimizer step (all ranks, all
micro-batches; the plan knows it):

    loss = S · W / N          engine.backward(loss, scale_wrt_gas=False)

DeepSpeed averages gradients over ranks, and W undoes that; `scale_wrt_gas=False` keeps it from dividing by the number
of micro-batches. The gradient is then that of (ΣS) / N, one weighted mean over all trained tokens, however they are
spread. A micro-batch without trained tokens adds nothing.

The head makes logits for trained positions only, a chunk at a time, and computes its gradients in the same pass: three
matrix products on kept tokens, and never a [T, V] tensor (the idea of Liger's fused linear cross-entropy,
arXiv 2410.10989, without the positions whose loss is ignored).

    T tokens, K kept (trained) positions, H hidden size, V vocabulary
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F

from sft.batches import Targets

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**28}
"""Logits that exist at the same time: few enough for a CPU's caches, many enough to keep a GPU busy."""


class TrainedTokensLoss(torch.autograd.Function):
    """hidden [K, H], weight [V, H], labels [K], what they count [K] → (weighted sum of losses, stats [3, K]).

    The stats, float32 and without gradient, are of every label: its loss, whether it was predicted rightly (1 or 0),
    and the entropy of the prediction in nats.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        label_weights: torch.Tensor | None,
        with_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Go through the kept positions in chunks; keep the gradients of both inputs where they are wanted."""
        stats = torch.empty(3, len(labels), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if with_gradient else None
        weight_grad = None
        if with_gradient and ctx.needs_input_grad[1]:  # not of an output layer that stays as it is
            weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        chunk = max(16, CHUNK_LOGITS[weight.device.type] // len(weight))
        for start in range(0, len(labels), chunk):
            rows, label = slice(start, start + chunk), labels[start : start + chunk, None]
            logits = F.linear(hidden[rows], weight).float()  # [chunk, V]
            best = logits.max(-1, keepdim=True)
            label_logit = logits.gather(1, label)
            probabilities = torch.softmax(logits, -1)
            # log Σ exp(logits), from the largest probability: it is at least 1 / V, so its logarithm is exact enough.
            log_sum = best.values - probabilities.gather(1, best.indices).log()
            stats[0, rows] = (log_sum - label_logit).squeeze(1)
            stats[1, rows] = (best.indices == label).squeeze(1)
            stats[2, rows] = log_sum.squeeze(1) - torch.linalg.vecdot(probabilities, logits)
            if hidden_grad is not None:
                # d loss / d logits = (softmax - one-hot) · what the label counts
                gradient = probabilities.scatter_add_(1, label, -torch.ones_like(log_sum))
                if label_weights is not None:
                    gradient.mul_(label_weights[rows, None])
                gradient = gradient.to(weight.dtype)
                hidden_grad[rows] = gradient @ weight
                if weight_grad is None:
                    continue
                if weight.dtype is weight_grad.dtype:
                    weight_grad.addmm_(gradient.t(), hidden[rows])
                else:
                    weight_grad += gradient.t() @ hidden[rows]  # the product in bfloat16, the sum over chunks not
        ctx.gradients = (hidden_grad, weight_grad)
        ctx.mark_non_differentiable(stats)
        return (stats[0] if label_weights is None else stats[0] * label_weights).sum(), stats

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None, None, None]:
        """Scale the gradients that forward kept."""
        hidden_grad, weight_grad = ctx.gradients
        ctx.gradients = None
        if weight_grad is not None:
            weight_grad = (weight_grad * outer[0]).to(hidden_grad.dtype)
        return hidden_grad * outer[0], weight_grad, None, None, None


def install_loss_head(model: torch.nn.Module) -> None:
    """Teach the model's output layer to return the loss when it is given labels.

    The loss is computed inside the layer's own `forward`, so ZeRO-3 gathers its weight as it does for any other layer.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    head.forward = MethodType(_head_forward, head)


def _head_forward(
    head: torch.nn.Linear,
    hidden: torch.Tensor,
    places: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """hidden [1, T, H] → logits [1, T, V], or with `batches.Targets` the loss and stats of `TrainedTokensLoss`."""
    if places is None:
        return F.linear(hidden, head.weight, head.bias)
    kept = hidden.reshape(-1, hidden.shape[-1]).index_select(0, places)
    result: tuple[torch.Tensor, torch.Tensor] = TrainedTokensLoss.apply(  # type: ignore[no-untyped-call]
        kept, head.weight, labels, weights, torch.is_grad_enabled()
    )
    return result


LOSS, WEIGHT, RIGHT, ENTROPY, COUNT = range(5)
"""The columns of `sums_by_source`: Σ loss · weight, Σ weight, tokens predicted rightly, Σ entropy, labels."""


def sums_by_source(stats: torch.Tensor, targets: Targets) -> torch.Tensor:
    """stats [3, K] of a batch → [S, 5] float64 sums over the labels of each source, on the device."""
    losses, right, entropies = stats
    ones = torch.ones_like(losses)
    weights = ones if targets.weights is None else targets.weights
    columns = torch.stack([losses * weights, weights, right, entropies, ones], 1).double()
    return columns.new_zeros(targets.source_count, 5).index_add_(0, targets.sources, columns)
