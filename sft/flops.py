"""Operations that a step needs, and those that a GPU could do: model FLOPs utilization (arXiv 2204.02311, appendix B).

Counted is what the result needs and nothing else: the output layer for trained tokens only, attention for the pairs of
tokens within each document, no second forward pass of activation checkpointing.

    6 · parameters         of a token: forward 2, gradients of inputs 2 and of weights 2 (not where they are frozen)
    6 · width · length²    of a document in each layer: queries × keys and weights × values, half of them masked
"""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

from data_tools.plan import StepSize

_PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.4,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.4,
    "H800": 989.4,
    "A100": 312.0,
    "A800": 312.0,
    "A10G": 70.0,
    "A10": 125.0,
    "A40": 149.7,
    "RTX A6000": 154.8,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
"""Dense 16-bit products with sums in 32 bits, by the makers' data sheets; the first name that fits counts."""


def flops_of_steps(model: PreTrainedModel, sizes: Iterable[StepSize]) -> float:
    """Operations of forward and backward of some steps, over all ranks.

    Args:
        model: whole, or split by ZeRO-3; parameters that are not trained cost no gradient of their own.
    """
    sizes = list(sizes)
    tokens, pairs = sum(size.tokens for size in sizes), sum(size.pairs for size in sizes)
    of_token, of_label = _flops_of_parameters(model)
    full, windowed, window, width = _attention(model)
    # A token in a long document sees a window of keys, where without one it sees half the document on average.
    pairs_in_windows = min(pairs, 2 * window * tokens)
    attention = 6 * width * (full * pairs + windowed * pairs_in_windows)
    return of_token * tokens + of_label * sum(size.trained_tokens for size in sizes) + attention


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second of a device at best; None where that is not known."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return peak_of_name(torch.cuda.get_device_name(device))


def peak_of_name(name: str) -> float | None:
    """The same by a GPU's name, such as `NVIDIA H100 80GB HBM3`."""
    return next((peak * 1e12 for known, peak in _PEAK_TFLOPS.items() if known in name), None)


def _flops_of_parameters(model: PreTrainedModel) -> tuple[float, float]:
    """Of a token in the layers, and of a trained token in the output layer; looking up an embedding costs nothing."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    share = _share_of_experts(model)
    of_token = 0.0
    for name, parameter in model.named_parameters():
        if parameter is not embedding and parameter is not head:
            of_token += _flops(parameter) * (share if ".experts." in name else 1.0)
    return of_token, _flops(head)


def _flops(parameter: torch.nn.Parameter) -> int:
    count: int = getattr(parameter, "ds_numel", parameter.numel())  # whole, also where ZeRO-3 keeps a part
    if (packed := getattr(parameter, "quant_state", None)) is not None:  # two weights in a byte
        count = packed.shape.numel()
    return (6 if parameter.requires_grad else 4) * count


def _share_of_experts(model: PreTrainedModel) -> float:
    """The part of a mixture's experts that a token goes through."""
    text = model.config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((count for name in names if (count := getattr(text, name, None))), None)
    chosen = getattr(text, "num_experts_per_tok", None)
    return chosen / experts if experts and chosen else 1.0


def _attention(model: PreTrainedModel) -> tuple[int, int, int, int]:
    """Layers that see whole documents, layers that see a window, its tokens, and the width of all heads."""
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    every = "full_attention" if window is None else "sliding_attention"
    layers = getattr(text, "layer_types", None) or [every] * text.num_hidden_layers
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    windowed = layers.count("sliding_attention")
    return layers.count("full_attention"), windowed, window or 0, text.num_attention_heads * head_width
