"""Put a module into eval mode for a block, and restore the mode of every submodule, also after an exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode for the block; afterwards each submodule has its former mode.

    >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3).eval())
    >>> with eval_mode(model):
    ...     [child.training for child in model.modules()]
    [False, False, False]
    >>> [child.training for child in model.modules()]
    [True, True, False]
    """
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training
