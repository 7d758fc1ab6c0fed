"""Products in the precision of their numbers, whatever the training has chosen for its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def full_precision(device: str | torch.device) -> Iterator[None]:
    """Multiply float32 matrices in full precision within the block: no autocast, no TF32, no bfloat16.

    ``torch.set_float32_matmul_precision("medium")``, which Lightning recommends on GPUs, also shortens the products of
    CPUs that have instructions for it. Training does not mind; a Gram matrix, or an embedding that is cached for other
    runs, would have two or three correct digits. The setting belongs to the process: nothing else may train meanwhile.

    Args:
        device: Device whose autocast is disabled.

    >>> torch.set_float32_matmul_precision("medium")
    >>> with full_precision("cpu"):
    ...     torch.get_float32_matmul_precision()
    'highest'
    >>> torch.get_float32_matmul_precision()
    'medium'
    >>> torch.set_float32_matmul_precision("highest")
    """
    with ExitStack() as restored:
        restored.enter_context(torch.autocast(torch.device(device).type, enabled=False))
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:  # the switches of single backends are set (torch 2.9), which this function cannot express
            for library in (torch.backends.cuda, torch.backends.mkldnn):
                backend = getattr(library, "matmul")  # noqa: B009  which type hints of torch lack
                restored.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        else:
            restored.callback(torch.set_float32_matmul_precision, before)
            torch.set_float32_matmul_precision("highest")
        yield
