"""Layers that keep less for the backward pass, with the same results.

Between its matrix products a layer of the usual form keeps rows that the backward pass can make again from others: the
normalized rows of RMSNorm (in float32), and in the MLP the activation and what is multiplied by the last weight. That
is over a third of what a Llama keeps; the price is a few multiplications a value.

Whether a module has the usual form is tried, not read: its class's `forward` must give the same bits on small tensors.
What is otherwise, or was replaced before (Liger's kernels), stays as it is. Modules, weights and hooks stay theirs.

What is computed here is changed in place: temporary rows leave holes in the heap that rows of other sizes do not fill.
"""

from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

_Forward = Callable[[Any, torch.Tensor], torch.Tensor]


def keep_less(model: nn.Module) -> None:
    """Replace the `forward` of norms and MLPs that have the usual form."""
    for module in model.modules():
        if "forward" in vars(module):
            continue
        if _is_norm(module):
            module.forward = MethodType(_norm_forward, module)
        elif _is_gated_mlp(module):
            down = module.get_submodule("down_proj")
            if _is_plain(down):
                down.forward = MethodType(_down_forward, down)
                module.forward = MethodType(_whole_mlp_forward, module)
            else:
                module.forward = MethodType(_mlp_forward, module)


def _norm_forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
    return result


def _mlp_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = _SwiGLU.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
    result: torch.Tensor = self.down_proj(product)
    return result


def _whole_mlp_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = self.down_proj(self.gate_proj(x), self.up_proj(x))
    return result


def _down_forward(self: nn.Linear, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """In the layer that has the weight, so that ZeRO-3 gathers it; with the type that autocast gave to gate and up."""
    weight = self.weight.to(gate.dtype)
    result: torch.Tensor = _DownOfSwiGLU.apply(gate, up, weight)  # type: ignore[no-untyped-call]
    return result


class _RMSNorm(torch.autograd.Function):
    """w · x / √(mean(x²) + ε) (arXiv 1910.07467); of [..., H] it keeps x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.to(torch.float32)
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        normalized = (wide * scale).to(x.dtype)
        return normalized.mul_(weight) if weight.dtype is x.dtype else weight * normalized

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        normalized = x.to(torch.float32) * scale
        of_weight = None
        if ctx.needs_input_grad[1]:  # beside adapters it is frozen
            of_weight = (grad * normalized.to(x.dtype)).sum_to_size(weight.shape)
        inner = (grad * weight).to(torch.float32)
        along = (inner * normalized).mean(-1, keepdim=True)  # what moves along x leaves the result as it is
        return inner.sub_(normalized.mul_(along)).mul_(scale).to(x.dtype), of_weight, None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) · up (arXiv 2002.05202); it keeps what it is given."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        of_activation = grad * up
        of_gate = torch.ops.aten.silu_backward.grad_input(of_activation, gate, grad_input=of_activation)
        return of_gate, F.silu(gate).mul_(grad)


class _DownOfSwiGLU(torch.autograd.Function):
    """(silu(gate) · up) Wᵀ; it keeps what it is given, gate and up [..., I] and W [H, I], and no product of the two."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up, weight)
        return F.linear(F.silu(gate).mul_(up), weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        gate, up, weight = ctx.saved_tensors
        activation, of_product = F.silu(gate), grad @ weight
        of_weight = None
        if ctx.needs_input_grad[2]:
            of_weight = grad.flatten(0, -2).t() @ (activation * up).flatten(0, -2)
        of_up = activation.mul_(of_product)
        of_activation = of_product.mul_(up)
        of_gate = torch.ops.aten.silu_backward.grad_input(of_activation, gate, grad_input=of_activation)
        return of_gate, of_up, of_weight


def _is_norm(module: nn.Module) -> bool:
    epsilon = getattr(module, "variance_epsilon", None)
    if not isinstance(epsilon, float) or list(module._parameters) != ["weight"] or list(module.children()):
        return False
    return all(
        _agrees(
            type(module),
            SimpleNamespace(weight=_numbers(16, dtype), variance_epsilon=epsilon),
            _norm_forward,
            16,
            dtype,
        )
        for dtype in (torch.float32, torch.bfloat16)
    )


def _is_gated_mlp(module: nn.Module) -> bool:
    if {name for name, _ in module.named_children()} != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return False
    gate, up, down = _numbers(3 * 64, torch.float32).view(3, 8, 8)
    parts = {"gate_proj": gate.matmul, "up_proj": up.matmul, "down_proj": down.matmul, "act_fn": module.act_fn}
    return _agrees(type(module), SimpleNamespace(**parts), _mlp_forward, 8, torch.float32)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is one matrix and nothing else: no bias, adapter or quantized weight."""
    return type(layer) is nn.Linear and layer.bias is None and "forward" not in vars(layer)


def _agrees(form: type[nn.Module], self: Any, forward: _Forward, size: int, dtype: torch.dtype) -> bool:
    """Whether a class computes the same bits from these attributes, and needs no others."""
    x = 3 * _numbers(size * size, dtype).view(size, size)
    try:
        found = form.forward(self, x)
    except (AttributeError, TypeError, RuntimeError):
        return False
    return isinstance(found, torch.Tensor) and torch.equal(found, forward(self, x))


def _numbers(count: int, dtype: torch.dtype) -> torch.Tensor:
    """The same normal numbers always, which leaves the random numbers of training as they are."""
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randn(count, generator=generator, device="cpu").to(dtype)
