"""The cache of compiled functions stands on internals of numba: these tests fail if a release changes them."""

import numba
import numpy as np
import pytest
import xxhash

from lightning_failures.stats.kernels import _DIGEST_SIZE, compiled


def double(x, out):
    for i in range(len(x)):
        out[i] = 2 * x[i]


@pytest.fixture
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def _run():
    """Compile or load the function as a new process does; return how often its code was found in the cache."""
    function, out = compiled(double), np.zeros(3)
    function(np.arange(3.0), out)
    assert out.tolist() == [0, 2, 4]
    return sum(function.stats.cache_hits.values())


def test_compiled__uses_the_cache_with_checksums(cache_folder):
    assert [_run(), _run()] == [0, 1]
    (index,), (code,) = cache_folder.rglob("*.nbi"), cache_folder.rglob("*.nbc")
    content = code.read_bytes()
    assert xxhash.xxh3_128_digest(content[:-_DIGEST_SIZE]) == content[-_DIGEST_SIZE:]
    assert index.stat().st_size > _DIGEST_SIZE


def test_compiled__damaged_code_is_compiled_again(cache_folder):
    assert [_run(), _run()] == [0, 1]
    (code,) = cache_folder.rglob("*.nbc")
    content = bytearray(code.read_bytes())
    content[len(content) // 2] ^= 16
    code.write_bytes(content)
    assert [_run(), _run()] == [0, 1]
