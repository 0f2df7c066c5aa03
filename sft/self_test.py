"""Is a model right in packs? Tried once, before it is trained."""

import torch

from data_tools.errors import UserError
from sft.attention import PACKED
from sft.model import PackedCausalLM


def check_documents_are_apart(packed: PackedCausalLM, device: torch.device) -> None:
    """Try a packed row of three documents: changing the first must change no logit of the others, to the last bit, and
    each must have the logits that plain transformers gives it alone.

    This finds what packing would train silently wrong: layers that carry a state from one document into the next
    (linear attention, convolutions), attention with sinks or soft caps, heads that scale or cap their logits.

    Raises:
        UserError: this model cannot be trained in packs.
    """
    model = packed.model
    rows = model.config.get_text_config().vocab_size
    row = (torch.arange(17, device=device)[None] * 7919 + 1) % rows
    changed = torch.cat([rows - 1 - row[:, :7], row[:, 7:]], 1)
    borders = torch.tensor([0, 7, 8, 17], dtype=torch.int32, device=device)
    positions = torch.cat([torch.arange(length, device=device) for length in (7, 1, 9)])[None]
    was_training = packed.training
    packed.eval()
    with torch.no_grad():
        together = packed.logits(row, positions, borders, 9)
        after_change = packed.logits(changed, positions, borders, 9)
        model.set_attn_implementation("eager")
        alone = torch.cat([model(document, use_cache=False).logits for document in row.split([7, 1, 9], 1)], 1)
        model.set_attn_implementation(PACKED)
    packed.train(was_training)
    if not torch.equal(together[:, 7:], after_change[:, 7:]):
        raise UserError(
            f"{model.config.model_type} lets documents of a pack see each other; choose a plain attention architecture"
        )
    difference = float((together.float() - alone.float()).abs().max() / alone.float().abs().max())
    if not difference <= (1e-3 if together.dtype is torch.float32 else 5e-2):
        raise UserError(
            f"{model.config.model_type} computes other logits in packs than alone (by {difference:.0%}): its attention "
            f"or output layer does what the packed forward pass does not; choose a plain attention architecture"
        )
