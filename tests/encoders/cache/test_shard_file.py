"""The file format of the embedding cache; what it promises as a whole is tested in ``test_store.py``."""

import base64
import os
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.core.safetensors_io import read_header
from lightning_failures.encoders.cache.shard_file import (
    Pending,
    Shard,
    bytes_per_embedding,
    key_order,
    read_shard,
    write_shard,
)

N, DIM = 3000, 300


def shard():
    rng = np.random.default_rng(0)
    keys = rng.integers(-(2**63), 2**63 - 1, (N, 2))
    return keys, Shard.of(keys, rng.normal(size=(N, DIM)).astype(np.float16))


def test_write_shard__comes_back(tmp_path):
    keys, written = shard()
    path = write_shard(written, tmp_path, "f")
    read = read_shard(path, "f")
    assert np.array_equal(read.find(keys), np.arange(N))  # in the order in which they were given
    assert np.array_equal(read.embeddings, written.embeddings)
    assert not read.embeddings.flags.writeable
    assert read.nbytes == written.nbytes
    assert path.read_bytes()[-written.embeddings.nbytes :] == written.embeddings.tobytes()
    assert path == read.file == write_shard(written, tmp_path, "f")  # named by its content


# files of release 0.1.0: (dtype, name, content in base64)
WRITTEN_BEFORE = [
    (
        np.float16,
        "011a02d67267b0d0ee144056ed3decd9.safetensors",
        (
            "eAEAAAAAAAB7ImtleXMiOiB7ImR0eXBlIjogIkk2NCIsICJzaGFwZSI6IFsyLCAzXSwgImRhdGFfb2Zmc2V0cyI6IFswLCA0OF19LCAicGxhY2"
            "VzIjogeyJkdHlwZSI6ICJJMzIiLCAic2hhcGUiOiBbM10sICJkYXRhX29mZnNldHMiOiBbNDgsIDYwXX0sICJlbWJlZGRpbmdzIjogeyJkdHlw"
            "ZSI6ICJGMTYiLCAic2hhcGUiOiBbMywgNF0sICJkYXRhX29mZnNldHMiOiBbNjAsIDg0XX0sICJfX21ldGFkYXRhX18iOiB7ImZvcm1hdCI6IC"
            "JsaWdodG5pbmdfZmFpbHVyZXMgZW1iZWRkaW5ncyAyIiwgImZpbmdlcnByaW50IjogIjBhMWIiLCAiY2hlY2tzdW0iOiAiMDExYTAyZDY3MjY3"
            "YjBkMGVlMTQ0MDU2ZWQzZGVjZDkifX0gICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgAwAAAAAAAAAFAAAAAAAAAAUAAAAAAAAAAAAAAA"
            "AAAED5////////////////////AQAAAAIAAAAAAAAAAAAAMAA0ADYAOAA5ADoAOwA8gDwAPYA9"
        ),
    ),
    (
        np.float32,
        "ed69779697ba436323874a660311c586.safetensors",
        (
            "eAEAAAAAAAB7ImtleXMiOiB7ImR0eXBlIjogIkk2NCIsICJzaGFwZSI6IFsyLCAzXSwgImRhdGFfb2Zmc2V0cyI6IFswLCA0OF19LCAicGxhY2"
            "VzIjogeyJkdHlwZSI6ICJJMzIiLCAic2hhcGUiOiBbM10sICJkYXRhX29mZnNldHMiOiBbNDgsIDYwXX0sICJlbWJlZGRpbmdzIjogeyJkdHlw"
            "ZSI6ICJGMzIiLCAic2hhcGUiOiBbMywgNF0sICJkYXRhX29mZnNldHMiOiBbNjAsIDEwOF19LCAiX19tZXRhZGF0YV9fIjogeyJmb3JtYXQiOi"
            "AibGlnaHRuaW5nX2ZhaWx1cmVzIGVtYmVkZGluZ3MgMiIsICJmaW5nZXJwcmludCI6ICIwYTFiIiwgImNoZWNrc3VtIjogImVkNjk3Nzk2OTdi"
            "YTQzNjMyMzg3NGE2NjAzMTFjNTg2In19ICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgAwAAAAAAAAAFAAAAAAAAAAUAAAAAAAAAAAAAAA"
            "AAAED5////////////////////AQAAAAIAAAAAAAAAAAAAAAAAAD4AAIA+AADAPgAAAD8AACA/AABAPwAAYD8AAIA/AACQPwAAoD8AALA/"
        ),
    ),
]


@pytest.mark.parametrize(("dtype", "name", "content"), WRITTEN_BEFORE)
def test_shard__files_of_earlier_versions(tmp_path, dtype, name, content):
    content = base64.b64decode(content)
    keys = np.array([[5, -1], [3, 2**62], [5, -7]])
    embeddings = (np.arange(12).reshape(3, 4) / 8).astype(dtype)
    assert write_shard(Shard.of(keys, embeddings), tmp_path, "0a1b").name == name
    assert (tmp_path / name).read_bytes() == content
    (tmp_path / "before").write_bytes(content)
    read = read_shard(tmp_path / "before", "0a1b")
    assert read.find(keys).tolist() == [0, 1, 2]
    assert np.array_equal(read.embeddings, embeddings)
    assert read.embeddings.dtype == dtype


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("shard") / "file"


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such advice")
@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, N - 1), min_size=1, max_size=20), st.integers(0, 9999))
def test_prefetch__asks_for_the_rows_and_little_else(path, places, header):
    _, made = shard()
    places, width, gap = np.array(sorted(places)), 2 * DIM, 2**16
    size = header + made.embeddings.nbytes
    path.touch()
    with patch("os.posix_fadvise") as advise:
        Shard(made.keys, made.places, made.embeddings, path, size).prefetch(places)
    spans = [(start, start + length) for (_, start, length, _), _ in advise.call_args_list]
    assert all(call.args[3] == os.POSIX_FADV_WILLNEED for call in advise.call_args_list)
    wanted = np.zeros(size, dtype=int)
    for start in header + width * places:
        wanted[start : start + width] = 1
    asked = np.zeros(size, dtype=int)
    for start, end in spans:
        assert end <= size
        asked[start:end] += 1
    assert (asked[wanted == 1] >= 1).all()
    runs = 1 + (np.diff(width * places) > width + gap).sum()
    assert len(spans) == runs
    assert asked.sum() <= wanted.sum() + (len(places) - runs) * gap


def test_prefetch__whatever_the_file(tmp_path):
    _, made = shard()
    made.prefetch(np.arange(3))  # in memory
    read = read_shard(write_shard(made, tmp_path, "f"), "f")
    read.prefetch(np.array([0, N - 1]))
    read.prefetch(np.arange(N))
    read.file.unlink()  # evicted
    read.prefetch(np.arange(N))
    assert np.array_equal(read.embeddings[[0, N - 1]], made.embeddings[[0, N - 1]])


def test_pending__keeps_the_order_over_blocks():
    keys = np.arange(20).reshape(10, 2)
    rows = np.arange(30, dtype=np.float16).reshape(10, 3)
    pending = Pending()
    assert pending.find(keys).tolist() == [-1] * 10
    pending.add(keys[:0], rows[:0])
    assert len(pending) == 0
    for start in (0, 4, 8):
        pending.add(keys[start : start + 4], rows[start : start + 4])
    assert pending.find(keys[::-1]).tolist() == list(range(10))[::-1]
    assert np.array_equal(pending.embeddings, rows)
    assert np.array_equal(pending.shard(keys[:0]).embeddings, rows)
    moved = pending.shard(keys[[7, 2]])
    assert moved.embeddings[:, 0].tolist() == rows[[7, 2, 0, 1, 3, 4, 5, 6, 8, 9], 0].tolist()
    assert np.array_equal(moved.embeddings[moved.find(keys)], rows)


@pytest.mark.parametrize("dim", [1, 300])
def test_bytes_per_embedding__as_on_disk(tmp_path, dim):
    sizes = []
    for count in (1, 65):
        keys = np.arange(2 * count).reshape(count, 2)
        made = Shard.of(keys, np.zeros((count, dim), dtype=np.float16))
        with write_shard(made, tmp_path, "f").open("rb") as file:
            header = read_header(file)
        sizes.append(header.file_size - header.entries["keys"].start)
    assert sizes == [bytes_per_embedding(dim), 65 * bytes_per_embedding(dim)]


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-9, 9)), max_size=20))
def test_key_order__sorts_by_both_halves_and_keeps_equal_keys_as_they_come(pairs):
    order = key_order(np.array(pairs, dtype=np.int64).reshape(-1, 2).T)
    assert [(*pairs[row], row) for row in order] == sorted((*pair, row) for row, pair in enumerate(pairs))
