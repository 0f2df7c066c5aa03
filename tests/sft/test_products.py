"""Products by oneDNN are float32's."""

import os
from collections.abc import Iterator

import pytest
import torch

from sft import products
from sft.products import multiply_by_onednn


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_products_are_as_exact_as_before() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(300, 700, generator=generator), torch.randn(500, 700, generator=generator)
    exact = rows.double() @ weight.double().t()
    used = multiply_by_onednn()
    assert torch.get_float32_matmul_precision() == ("medium" if used else "highest")
    assert (rows @ weight.t() - exact).abs().max() < 1e-3  # with bfloat16 inside: 0.3
    assert (rows.t() @ (rows @ weight.t()) - rows.t().double() @ exact).abs().max() < 1e-2


def test_where_bfloat16_is_used_inside_it_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors with matrix units round; here the numbers are rounded by hand, as they do it."""
    product = torch.Tensor.__matmul__

    def rounded(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        if torch.get_float32_matmul_precision() == "medium":
            return product(one.bfloat16().float(), two.bfloat16().float())
        return product(one, two)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not products._is_exact() or torch.get_float32_matmul_precision() == "highest"
    assert not multiply_by_onednn()
    assert torch.get_float32_matmul_precision() == "highest"


def test_small_models_stay_with_mkl() -> None:
    torch.set_float32_matmul_precision("highest")
    assert not multiply_by_onednn(64)
    assert torch.get_float32_matmul_precision() == "highest"


def test_few_programs_are_kept_but_as_many_as_somebody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1000")
    multiply_by_onednn()
    assert (os.environ["LRU_CACHE_CAPACITY"], os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) == ("64", "1000")
