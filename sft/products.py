"""Float32 matrix products on CPUs, by the library that makes the most of them."""

import os

import torch

_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
"""Programs that oneDNN and torch's layer above it keep, one for each shape of a product, by the variables that they
read at the first. Attention has new shapes with every document: a thousand programs, as many as they would keep, take
1 GiB, and writing one costs less than can be measured in a step."""


LEAST_WIDTH = 256
"""Hidden sizes from which on oneDNN is faster: what it does for each product takes a third of a step at 64."""


def multiply_by_onednn(width: int = LEAST_WIDTH) -> bool:
    """Let torch multiply float32 matrices by oneDNN, where that changes nothing but the time; say whether it does.

    MKL, torch's usual choice, takes AMD's processors for ones without AVX-512: on a Zen 5 it needs twice as long. Torch
    asks oneDNN only where bfloat16 is allowed inside of products. oneDNN makes use of that on processors with matrix
    units (AMX) alone; on others it multiplies float32. Whether it does is tried, not read.

    Args:
        width: hidden size of the model.
    """
    if width < LEAST_WIDTH:
        return False
    for name, capacity in _CACHES.items():
        os.environ.setdefault(name, capacity)
    torch.set_float32_matmul_precision("medium")
    if _is_exact():
        return True
    torch.set_float32_matmul_precision("highest")
    return False


def _is_exact() -> bool:
    """Whether numbers that take all 24 bits come unchanged out of a product with the identity."""
    numbers, identity = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)), torch.eye(256)
    products = (numbers @ identity, numbers.t() @ identity, (identity @ numbers.t()).t(), numbers[:3] @ identity)
    whole = (numbers, numbers.t(), numbers, numbers[:3])
    return all(map(torch.equal, products, whole))
