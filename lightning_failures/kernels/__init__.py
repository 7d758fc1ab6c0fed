"""The three inner loops that numpy cannot express: compiled by numba the first time they run, then kept on disk.

Import these modules inside the function that needs them, so that ``import lightning_failures`` does not load numba.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numba

__all__ = ["compiled"]

# without "nnan" and "ninf" a maximum is not vectorised; what comes in was checked to be finite
_FAST = {"nnan", "ninf", "nsz", "arcp", "contract", "afn", "reassoc"}


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function of arrays and numbers; it runs without the interpreter's lock.

    The machine code is kept beside the source or in the user's cache folder, so that it is made once a machine. Where
    neither can be written it is made anew in each process, in a few seconds.
    """
    dispatcher: Any = numba.njit(nogil=True, fastmath=_FAST, error_model="numpy")(function)
    with contextlib.suppress(RuntimeError, OSError):
        dispatcher.enable_caching()
    return dispatcher
