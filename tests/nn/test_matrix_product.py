"""The product of two streams is the product of their means, at every step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from conversion_ext.errors import StateError
from conversion_ext.nn import MatrixProduct


def streams(T: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = (torch.rand(T, 2, 3, 4, generator=generator) > 0.5).double()  # spikes
    return a, torch.randn(T, 2, 4, 5, generator=generator, dtype=torch.float64)


def test_the_sum_of_outputs_is_t_times_the_product_of_mean_inputs() -> None:
    a, b = streams()
    module = MatrixProduct()
    total = np.zeros((2, 3, 5))
    for t in range(1, len(a) + 1):
        total += module(a[t - 1], b[t - 1]).numpy()
        expected = t * np.matmul(a[:t].mean(0).numpy(), b[:t].mean(0).numpy())
        np.testing.assert_allclose(total, expected, rtol=1e-12, atol=1e-12)


def test_step_modes_agree_bit_for_bit_and_chunks_continue() -> None:
    a, b = streams()
    single, multi = MatrixProduct(), MatrixProduct(step_mode="m")
    steps = torch.stack([single(x, y) for x, y in zip(a, b, strict=True)])
    assert torch.equal(steps, torch.cat([multi(a[:3], b[:3]), multi(a[3:], b[3:])]))
    multi.reset()
    assert torch.equal(multi(a, b), steps)


def test_any_bilinear_product_will_do() -> None:
    a, b = streams()
    module = MatrixProduct(lambda x, y: torch.einsum("nij,njk->nki", x, y), step_mode="m")
    expected = torch.einsum("nij,njk->nki", a.mean(0), b.mean(0))
    torch.testing.assert_close(module(a, b).mean(0), expected, rtol=1e-12, atol=1e-12)


def test_half_precision_keeps_a_wide_state() -> None:
    a, b = streams(400)
    y = MatrixProduct(step_mode="m")(a.bfloat16(), b.bfloat16())
    assert y.dtype == torch.bfloat16
    expected = a.mean(0) @ b.bfloat16().double().mean(0)
    assert float((y.double().mean(0) - expected).abs().max()) < 0.05


def test_another_shape_without_reset_is_refused() -> None:
    a, b = streams()
    module = MatrixProduct()
    module(a[0], b[0])
    with pytest.raises(StateError):
        module(a[0, :1], b[0, :1])
