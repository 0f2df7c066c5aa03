"""Is a model right in packs? Tried once, before it is trained."""

import torch
from torch.distributed import DistError

from data_tools.errors import UserError
from sft.attention import PACKED
from sft.model import PackedCausalLM

LENGTHS = (7, 1, 9)
"""Tokens of the documents of the row that is tried."""
ALONE = "set data.packing=none and train.packs_per_micro_batch=1"


def check_documents_are_apart(packed: PackedCausalLM, device: torch.device, alone: bool = False) -> None:
    """Try a packed row of three documents: changing the first must change no logit of the others, to the last bit (but
    for what experts round), and each must have the logits that plain transformers gives it alone.

    This finds what packing would train silently wrong: layers that carry a state from one document into the next
    (linear attention, convolutions), attention or output layers that do what the packed forward pass does not.

    Args:
        alone: rows are single documents, so only these are tried.

    Raises:
        UserError: this model cannot be trained so; the line says why and what can be set instead.
    """
    was_training = packed.training
    packed.eval()
    try:
        with torch.no_grad():
            _check_one_document(packed, device)
            if not alone:
                _check_three_documents(packed, device)
    except (torch.OutOfMemoryError, torch.AcceleratorError, DistError):
        raise
    except (ValueError, RuntimeError) as error:  # how transformers refuses, and how kernels do
        if "/gloo/" in str(error):  # another rank died: with ZeRO-3 they gather the parameters
            raise
        raise UserError(f"{_name(packed)} cannot be trained so: {str(error).splitlines()[0]}") from None
    finally:
        packed.train(was_training)


def _check_one_document(packed: PackedCausalLM, device: torch.device) -> None:
    """Its hidden states tell the attention, its logits the output layer."""
    model, name = packed.model, _name(packed)
    if model.base_model is model:
        raise UserError(f"{name} does not say which of its parts come before the output layer; choose another model")
    ids, positions, borders = _row(packed, device, LENGTHS[-1:])
    hidden = packed.hidden(ids, positions, borders, LENGTHS[-1])
    logits = packed.logits(ids, positions, borders, LENGTHS[-1])
    model.set_attn_implementation("eager")
    true_hidden = model.base_model(ids, use_cache=False).last_hidden_state
    true_logits = model(ids, use_cache=False).logits
    model.set_attn_implementation(packed.attention)
    if not _difference(hidden, true_hidden) <= _bound(hidden):
        raise UserError(
            f"{name} computes something else with model.attention={_setting(packed)} than with transformers' own "
            f"attention (by {_difference(hidden, true_hidden):.0%}); set {_other(packed)}, or choose another model"
        )
    if not _difference(logits, true_logits) <= _bound(logits):
        raise UserError(
            f"{name} makes its logits in a way that the loss does not follow (they differ by "
            f"{_difference(logits, true_logits):.0%}): it does more after its output layer than to scale or cap; "
            f"choose another model"
        )


def _check_three_documents(packed: PackedCausalLM, device: torch.device) -> None:
    model, name, first = packed.model, _name(packed), LENGTHS[0]
    ids, positions, borders = _row(packed, device, LENGTHS)
    changed = torch.cat([model.config.get_text_config().vocab_size - 1 - ids[:, :first], ids[:, first:]], 1)
    together = packed.logits(ids, positions, borders, max(LENGTHS))
    after_change = packed.logits(changed, positions, borders, max(LENGTHS))
    model.set_attn_implementation("eager")
    apart = torch.cat([model(document, use_cache=False).logits for document in ids.split(LENGTHS, 1)], 1)
    model.set_attn_implementation(packed.attention)
    if not _difference(together[:, first:], after_change[:, first:]) <= _leak(packed):
        raise UserError(
            f"{name} lets documents of a pack see each other: some of its layers carry a state along the row (linear "
            f"attention, convolutions), or do not hear of documents; {ALONE}, or choose another model"
        )
    if not _difference(together, apart) <= _bound(together):
        raise UserError(
            f"{name} computes other logits in packs than alone (by {_difference(together, apart):.0%}): it does not "
            f"count positions from each document's start; {ALONE}, or choose another model"
        )


def _row(
    packed: PackedCausalLM, device: torch.device, lengths: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, positions and borders of documents of these lengths."""
    vocab_size = packed.model.config.get_text_config().vocab_size
    ids = (torch.arange(sum(lengths), device=device)[None] * 7919 + 1) % vocab_size
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    borders = torch.tensor([0, *lengths], dtype=torch.int32, device=device).cumsum(0, dtype=torch.int32)
    return ids, positions, borders


def _difference(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.float() - true.float()).norm() / true.float().norm())


def _bound(tensor: torch.Tensor) -> float:
    return 1e-3 if tensor.dtype is torch.float32 else 5e-2


def _leak(packed: PackedCausalLM) -> float:
    """By how much a document may change with another: not at all, but for the rounding of experts, whose products have
    as many rows as tokens come to them from the whole row.
    """
    text = packed.model.config.get_text_config()
    if not any(getattr(text, name, None) for name in _EXPERTS):
        return 0.0
    return 1e-5 if packed.model.dtype is torch.float32 else 1e-2


_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What transformers' configurations call them."""


def _name(packed: PackedCausalLM) -> str:
    return str(packed.model.config.model_type)


def _setting(packed: PackedCausalLM) -> str:
    return "packed" if packed.attention == PACKED else packed.attention


def _other(packed: PackedCausalLM) -> str:
    return "model.attention=sdpa" if packed.attention == PACKED else "model.attention=packed"
