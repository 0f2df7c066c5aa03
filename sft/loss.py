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

Some models go on where the output layer ends: logits are multiplied by a number (Granite, Cohere), or capped softly by
cap · tanh(logits / cap) (Gemma). The head does the same, and its gradient follows by the chain rule.

    T tokens, K kept (trained) positions, H hidden size, V vocabulary
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from sft.batches import Targets

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""Logits that exist at the same time: few enough for a CPU's caches; on a GPU enough rows that adding each chunk's
gradient to the weight's costs little beside its products, at 1 GB for logits and probabilities."""


@dataclass(frozen=True)
class LogitForm:
    """What a model does to the output layer's results."""

    scale: float = 1.0
    cap: float | None = None

    def of(self, raw: torch.Tensor) -> torch.Tensor:
        """Logits from the output layer's results."""
        logits = raw if self.scale == 1.0 else raw * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def back(self, gradient: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient of the output layer's results, in place of the one of these logits."""
        if self.cap is not None:
            gradient.mul_(1 - (logits / self.cap).square())
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


def logit_form(config: PretrainedConfig) -> LogitForm:
    """Read from the names that transformers' models use; the self-test at start finds those that use others."""
    text = config.get_text_config()
    divisor, factor = getattr(text, "logits_scaling", None), getattr(text, "logit_scale", None)
    scale = 1.0 if divisor is None else 1.0 / divisor
    if isinstance(factor, int | float):
        scale *= factor
    return LogitForm(scale, getattr(text, "final_logit_softcapping", None))


class TrainedTokensLoss(torch.autograd.Function):
    """hidden [K, H], weight [V, H], bias [V], labels [K], what they count [K] → (weighted sum of losses, stats [3, K]).

    The stats, float32 and without gradient, are of every label: its loss, whether it was predicted rightly (1 or 0),
    and the entropy of the prediction in nats.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        label_weights: torch.Tensor | None,
        form: LogitForm,
        with_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Go through the kept positions in chunks; keep the gradients of the inputs that want one."""
        stats = torch.empty(3, len(labels), dtype=torch.float32, device=hidden.device)
        wanted = [with_gradient and needed for needed in ctx.needs_input_grad[:3]]
        hidden_grad = torch.empty_like(hidden) if wanted[0] else None
        weight_grad, bias_grad = (
            torch.zeros(tensor.shape, dtype=torch.float32, device=tensor.device)
            if want and tensor is not None
            else None
            for want, tensor in zip(wanted[1:], (weight, bias), strict=True)
        )
        chunk = max(16, CHUNK_LOGITS[weight.device.type] // len(weight))
        # Logits and probabilities of all chunks are written to the same place: a CPU takes as long to be given fresh
        # memory as for a third of the product. In half precision there is a tensor more, which would not fit beside.
        in_place = hidden.dtype is torch.float32
        room = hidden.new_empty(2, min(chunk, len(labels)), len(weight)) if in_place else None
        for start in range(0, len(labels), chunk):
            rows = slice(start, start + chunk)
            counts = None if label_weights is None else label_weights[rows]
            errors = _errors(hidden[rows], weight, bias, labels[rows], counts, form, stats[:, rows], room, any(wanted))
            if errors is None:
                continue
            if bias_grad is not None:
                bias_grad += errors.sum(0)
            gradient = errors.to(weight.dtype)
            del errors  # of this size are few tensors at a time, none while the next chunk is made
            if hidden_grad is not None:
                hidden_grad[rows] = gradient @ weight
            if weight_grad is not None and weight.dtype is weight_grad.dtype:
                weight_grad.addmm_(gradient.t(), hidden[rows])
            elif weight_grad is not None:
                weight_grad += gradient.t() @ hidden[rows]  # the product in bfloat16, the sum over chunks not
            del gradient
        ctx.gradients = (hidden_grad, weight_grad, bias_grad)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(stats)
        return (stats[0] if label_weights is None else stats[0] * label_weights).sum(), stats

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that forward kept."""
        scaled = (
            None if gradient is None else gradient.mul_(outer[0]).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        )
        ctx.gradients = None
        return (*scaled, None, None, None, None)


def _errors(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    counts: torch.Tensor | None,
    form: LogitForm,
    stats: torch.Tensor,
    room: torch.Tensor | None,
    with_gradient: bool,
) -> torch.Tensor | None:
    """Of one chunk of positions the stats [3, chunk], filled in, and the gradient [chunk, V] of the output layer's
    results, float32; None where it is not wanted.

    Args:
        room: [2, ≥ chunk, V], float32: where to compute; None: in tensors of their own.
    """
    label = labels[:, None]
    raw_room, probabilities_room = (None, None) if room is None else room[:, : len(labels)]
    if bias is None:
        raw = torch.mm(hidden, weight.t(), out=raw_room)
    else:
        raw = torch.addmm(bias, hidden, weight.t(), out=raw_room)
    logits = form.of(raw.float())  # [chunk, V]
    best = logits.max(-1, keepdim=True)
    label_logit = logits.gather(1, label)
    probabilities = torch.softmax(logits, -1, out=probabilities_room)
    # log Σ exp(logits), from the largest probability: it is at least 1 / V, so its logarithm is exact enough.
    log_sum = best.values - probabilities.gather(1, best.indices).log()
    stats[0] = (log_sum - label_logit).squeeze(1)
    stats[1] = (best.indices == label).squeeze(1)
    # Row by row their inner product; `vecdot` would make a third matrix of their size.
    stats[2] = log_sum.squeeze(1) - torch.bmm(probabilities[:, None], logits[:, :, None]).flatten()
    if not with_gradient:
        return None
    # d loss / d logits = (softmax - one-hot) · what the label counts
    exact = probabilities.scatter_add_(1, label, -torch.ones_like(log_sum))
    if counts is not None:
        exact.mul_(counts[:, None])
    return form.back(exact, logits)


def install_loss_head(model: torch.nn.Module) -> None:
    """Teach the model's output layer to return the loss when it is given labels.

    The loss is computed inside the layer's own `forward`, so ZeRO-3 gathers its weight as it does for any other layer.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    head.forward = partial(_head_forward, head, logit_form(model.config))


def _head_forward(
    head: torch.nn.Linear,
    form: LogitForm,
    hidden: torch.Tensor,
    places: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    finished: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """hidden [1, T, H] → with `batches.Targets` the loss and stats of `TrainedTokensLoss`, else [1, T, V]: what the
    layer computes (transformers' own forward pass goes on from there), or with `finished` the logits.
    """
    if places is None:
        raw = F.linear(hidden, head.weight, head.bias)
        return form.of(raw) if finished else raw
    kept = hidden.reshape(-1, hidden.shape[-1]).index_select(0, places)
    result: tuple[torch.Tensor, torch.Tensor] = TrainedTokensLoss.apply(  # type: ignore[no-untyped-call]
        kept, head.weight, head.bias, labels, weights, form, torch.is_grad_enabled()
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
