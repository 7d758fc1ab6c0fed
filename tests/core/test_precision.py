"""The precision of products inside the block, and that of the training after it."""

import pytest
import torch

from lightning_failures.core.precision import full_precision


def product(x):
    return x @ x.T


@pytest.fixture
def x():
    return torch.randn(64, 300, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chosen", ["highest", "high", "medium"])
def test_full_precision__inside_the_block_only(x, chosen):
    expected = product(x)
    try:
        torch.set_float32_matmul_precision(chosen)
        shortened = product(x)
        with torch.autocast("cpu", torch.bfloat16):
            with full_precision("cpu"):
                assert torch.equal(product(x), expected)
            assert product(x).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == chosen
        assert torch.equal(product(x), shortened)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_full_precision__is_restored_after_an_error(x):
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(ZeroDivisionError), full_precision("cpu"):
            1 / 0  # noqa: B018
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="a switch of torch 2.9")
def test_full_precision__switches_of_single_backends(x):
    expected = product(x)
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            torch.get_float32_matmul_precision()
        with full_precision("cpu"):
            assert [one.fp32_precision for one in backends] == ["ieee", "ieee"]
            assert torch.equal(product(x), expected)
        assert [one.fp32_precision for one in backends] == ["tf32", "bf16"]
    finally:
        torch.set_float32_matmul_precision("highest")
