"""The three inner loops that numpy cannot express: compiled by numba the first time they run, then kept on disk.

Import these modules inside the function that needs them, so that ``import lightning_failures`` does not load numba.

Files, each importing only from those above it::

    forms     Quadratic forms of many subsets: the permutation statistic on the Gram matrix
    gain      Two passes over features, before and after they are sorted: pack value and label into one integer;
    products  Scalar products in the arithmetic of libsvm, bit for bit
    shuffle   Random labellings for permutation tests: the failing groups land on other groups, drawn without
    smo       Sequential minimal optimisation of the L1-hinge SVM on a Gram matrix, warm along C
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import xxhash
from numba.core.caching import FunctionCache, IndexDataCacheFile

__all__ = ["compiled"]

# without "nnan" and "ninf" a maximum is not vectorised; what comes in was checked to be finite
_FAST = {"nnan", "ninf", "nsz", "arcp", "contract", "afn", "reassoc"}
_DIGEST = 16


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function of arrays and numbers; it runs without the interpreter's lock.

    The machine code is kept beside the source or in the user's cache folder, so that it is made once a machine. Where
    neither can be written, and where what is there is damaged, it is made anew, in a few seconds.
    """
    dispatcher: Any = numba.njit(nogil=True, fastmath=_FAST, error_model="numpy")(function)
    with contextlib.suppress(RuntimeError, OSError):
        dispatcher._cache = _Cache(function)
    return dispatcher


class _Cache(FunctionCache):  # type: ignore[misc]
    """numba's own, but nothing that is wrong with its files is an error."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever a flipped bit leads to
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(Exception):  # a full disk, for one: the next process compiles again
            super().save_overload(sig, data)


class _Files(IndexDataCacheFile):  # type: ignore[misc]
    """numba's own, with a checksum at the end of each, so that damaged machine code is never run."""

    def _dump(self, obj: Any) -> bytes:
        data: bytes = super()._dump(obj)
        return data + xxhash.xxh3_128_digest(data)

    def _load_index(self) -> Any:
        _verify(Path(self._index_path), after=len(pickle.dumps(self._version, protocol=-1)))
        return super()._load_index()

    def _load_data(self, name: str) -> Any:
        _verify(Path(self._data_path(name)), after=0)
        return super()._load_data(name)


def _verify(path: Path, *, after: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        data = path.read_bytes()[after:]
        if xxhash.xxh3_128_digest(data[:-_DIGEST]) != data[-_DIGEST:]:
            raise ValueError(f"{path} is damaged")
