"""Restore random number generators after a block, also after an exception."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restore the global random number generators after the block.

    Lightning's ``isolate_rng`` does not restore them if the block raises an exception.

    >>> import random
    >>> before = random.getstate()
    >>> with isolated_rng():
    ...     _ = random.random()
    >>> random.getstate() == before
    True
    """
    error: BaseException | None = None
    with isolate_rng():
        try:
            yield
        except BaseException as raised:
            error = raised
    if error is not None:
        raise error


def seed_all(seed: int) -> None:
    """Seed the global generators, which the user's transforms may use; call it only inside :func:`isolated_rng`."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
