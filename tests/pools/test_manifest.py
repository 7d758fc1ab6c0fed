"""The manifest of a pool and its blocks."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.pools import (
    PoolManifest,
)
from lightning_failures.pools.manifest import default_shard_size

DIM, CLASSES = 6, 4


@given(st.integers(1, 500), st.integers(1, 600))
def test_blocks__every_id_once(examples, size):
    pool = PoolManifest("f", "n", examples=examples, shard_size=size)
    ids = [i for number in range(pool.shards) for i in pool.block(number)]
    assert ids == list(range(examples))
    assert all(len(pool.block(number)) for number in range(pool.shards))


@given(st.integers(1, 10**9), st.integers(1, 4096))
def test_default_shard_size__whole_batches(examples, batch):
    size = default_shard_size(examples, batch)
    assert size % batch == 0
    assert 256 <= size < 8192 + batch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "beef"}, "the encoder differ"),
        ({"examples": 11}, "number of examples"),
        ({"sample": ("00",)}, "the images, or their transform"),
        ({"shard_size": 5}, "shard size"),
    ],
)
def test_claim__another_pool_is_refused(tmp_path, change, message):
    pool = PoolManifest("f00d", "an encoder", examples=10, shard_size=4)
    assert pool.claim(tmp_path) is pool
    renamed = dataclasses.replace(pool, encoder_name="the same by another name")
    assert renamed.claim(tmp_path) == pool
    with pytest.raises(ConfigurationError, match=message):
        dataclasses.replace(pool, **change).claim(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"encoder": 3}', '{"encoder": "f", "encoder_name": "n", "examples": 3, "shard_size": 0}'],
)
def test_manifest__damaged_is_reported(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        PoolManifest.load(tmp_path)


def test_claim__an_image_that_could_not_be_embedded_at_one_time_may_be_any(tmp_path):
    pool = PoolManifest("f00d", "an encoder", examples=10, shard_size=4, sample=("", "aa", "bb"))
    pool.claim(tmp_path)
    for sample in (("cc", "aa", "bb"), ("cc", "", "")):
        assert dataclasses.replace(pool, sample=sample).claim(tmp_path) == pool
    for sample in (("cc", "aa", "cc"), ("aa", "bb"), ()):
        with pytest.raises(ConfigurationError, match="the images, or their transform"):
            dataclasses.replace(pool, sample=sample).claim(tmp_path)
