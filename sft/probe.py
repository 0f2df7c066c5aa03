"""A look at a model's logits, which a checkpoint keeps for exports and resumes to compare with."""

from typing import Any

import numpy as np
import torch

from data_tools.store import TokenStore
from sft.model import PackedCausalLM

PROBE_TOKENS = 128
"""Tokens whose logits are kept."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of logits, as a share of the largest logit: packed and plain attention round differently."""


@torch.no_grad()
def probe_logits(model: PackedCausalLM, store: TokenStore, device: torch.device) -> dict[str, Any]:
    """The first tokens of the store's first document, and the model's logits for them; all ranks call it."""
    ids = torch.from_numpy(store.document(0).input_ids[:PROBE_TOKENS].astype(np.int64))[None].to(device)
    length = ids.shape[1]
    model.eval()
    logits = model.logits(
        ids,
        torch.arange(length, device=device)[None],
        torch.tensor([0, length], dtype=torch.int32, device=device),
        length,
    )
    model.train()
    return {"input_ids": ids.cpu(), "logits": logits.float().cpu(), "dtype": logits.dtype}


def difference_of_logits(logits: torch.Tensor, probe: dict[str, Any]) -> float:
    """Largest difference from what `probe_logits` gave, as a share of the largest logit."""
    trained = probe["logits"]
    return float((logits - trained).abs().max() / trained.abs().max())


def same_logits(logits: torch.Tensor, probe: dict[str, Any]) -> bool:
    """Whether logits are those of a probe, but for rounding."""
    return logits.shape == probe["logits"].shape and difference_of_logits(logits, probe) <= TOLERANCE[probe["dtype"]]
