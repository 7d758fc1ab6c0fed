"""Inner loops that NumPy cannot express, compiled by numba on their first run and cached on disk.

Import these modules inside the function that needs them, so that ``import lightning_failures`` does not load numba.

Files, each importing only from those above it::

    elastic_net  Coordinate descent on a quadratic model with an elastic net penalty, by coordinates and by groups
    forms        Quadratic forms of many subsets: the permutation statistic on the Gram matrix
    gain         Information gain of the cuts of sorted features, exact, and the sorted features themselves
    products     Scalar products in the arithmetic of libsvm, bit for bit
    shuffle      Random labellings for permutation tests that keep groups whole
    smo          Sequential minimal optimization of the L1-hinge SVM on a Gram matrix, with warm starts along C
    top_gains    The features with the highest information gains, by bounds of the gains in blocks of cuts
    tree         Growth of a binary decision tree on features that are already sorted, as scikit-learn's trees grow
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

__all__ = ["compiled", "compiled_strictly"]

# a maximum is not vectorized without "nnan" and "ninf"; the inputs have been checked to be finite
_FAST = {"nnan", "ninf", "nsz", "arcp", "contract", "afn", "reassoc"}
_DIGEST_SIZE = 16


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function of arrays and numbers that runs without the interpreter's lock.

    The machine code is cached next to the source or in the user's cache folder, so it is compiled once per machine. If
    neither can be written, or the cached code is damaged, the function is compiled again in a few seconds.
    """
    return _compiled(function, _FAST)


def compiled_strictly(function: Callable[..., Any]) -> Any:
    """Compile as :func:`compiled` does, but round every operation on floats as it is written."""
    return _compiled(function, set())


def _compiled(function: Callable[..., Any], fast: set[str]) -> Any:
    dispatcher: Any = numba.njit(nogil=True, fastmath=fast or False, error_model="numpy")(function)
    # numba.njit(cache=True) uses numba's own cache, which runs damaged machine code and lets errors of the disk end the
    # program; numba offers no public way to choose another cache. tests/stats/test_kernels.py fails if a release of
    # numba no longer uses this attribute, or the methods that the classes below override.
    with contextlib.suppress(RuntimeError, OSError):  # no folder can be written: compile in every process
        dispatcher._cache = _Cache(function)
    return dispatcher


class _Cache(FunctionCache):  # type: ignore[misc]
    """numba's cache of a function, for which a problem with a file is a cache miss instead of an error."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file can raise anything
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(Exception):  # such as a full disk: the next process compiles again
            super().save_overload(sig, data)


class _Files(IndexDataCacheFile):  # type: ignore[misc]
    """numba's cache files with a checksum at the end of each, so that damaged machine code never runs."""

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
    """Raise a ValueError if the checksum of a file, from byte ``after`` on, does not match; a missing file passes."""
    with contextlib.suppress(FileNotFoundError):
        data = path.read_bytes()[after:]
        if xxhash.xxh3_128_digest(data[:-_DIGEST_SIZE]) != data[-_DIGEST_SIZE:]:
            raise ValueError(f"{path} is damaged")
