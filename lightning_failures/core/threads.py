"""Threads of the linear algebra libraries."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[Any]:
    """Hold BLAS and OpenMP to one thread inside the block.

    Products of a few hundred rows lose by more: threads that wait for each other made them 20 times as slow on a busy
    machine, and loader workers and other ranks have use for the cores.

    >>> with one_thread():
    ...     pass
    """
    limit: AbstractContextManager[Any] = _controller().limit(limits=1)
    return limit


@functools.lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks at every loaded library, which takes longer than a small analysis
