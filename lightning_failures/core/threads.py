"""Thread limits of the linear algebra libraries."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from typing import Any

from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[Any]:
    """Limit BLAS and OpenMP to one thread inside the block.

    More threads slow down products of a few hundred rows: on a busy machine, threads that waited for each other made
    them 20 times as slow. Loader workers and other ranks can use the cores.

    >>> with one_thread():
    ...     pass
    """
    limit: AbstractContextManager[Any] = _controller().limit(limits=1)
    return limit


@functools.lru_cache(maxsize=1)
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # inspects every loaded library, which takes longer than a small analysis
