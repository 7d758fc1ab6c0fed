"""The stream over the shards of a pool, against everything in memory at once."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.errors import DataError
from lightning_failures.pools import (
    PoolManifest,
    PoolShard,
    merge_shards,
    score_shard,
    write_pool_shard,
)
from lightning_failures.pools.shards import POOL_UNLABELLED
from tests.pools.synthetic import CLASSES, fitted, rows


def part(shard: PoolShard, block: range) -> PoolShard:
    return dataclasses.replace(
        shard, **{k: v[block.start : block.stop] for k, v in vars(shard).items() if isinstance(v, torch.Tensor)}
    )


def store(folder, shard: PoolShard, size: int, directions=None) -> PoolManifest:
    pool = PoolManifest("f00d", "an encoder", examples=len(shard), shard_size=size)
    for number in range(pool.shards):
        piece = part(shard, pool.block(number))
        piece = piece if directions is None else score_shard(piece, directions)
        write_pool_shard(piece, pool.path(folder, number), pool=pool.digest)
    return pool


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 400), st.integers(20, 150), st.integers(1, 30), st.integers(0, 3))
def test_merge__as_in_memory(tmp_path_factory, size, shard_size, k, seed):
    folder, directions, pool = tmp_path_factory.mktemp("pool"), fitted(), rows(size, seed)
    summary = merge_shards(folder, store(folder, pool, shard_size, directions), directions=directions, k=k)
    values = directions.decision_values(pool.embeddings.float(), pool.labels).numpy()
    assert sum(entry.examples for entry in summary.classes) == size
    for entry in summary.classes:
        mine = np.flatnonzero(pool.labels.numpy() == entry.label)
        assert entry.examples == len(mine)
        if entry.label == CLASSES - 1:
            assert entry.picks is entry.flagged is None
            continue
        assert entry.flagged == (values[mine] < 0).sum()
        assert entry.mean == pytest.approx(values[mine].mean(), abs=1e-5)
        hardest = mine[np.argsort(values[mine], kind="stable")][:k]
        assert entry.picks.ids.tolist() == hardest.tolist()
        np.testing.assert_allclose(entry.picks.values, values[hardest], atol=1e-6)


def test_merge__exact_copies_are_listed_once(tmp_path):
    directions, pool = fitted(), rows(40)
    copied = PoolShard(
        torch.arange(80), *(torch.cat([column, column]) for column in (pool.labels, pool.keys, pool.embeddings))
    )
    once, twice = (
        merge_shards(folder, store(folder, shard, 16, directions), directions=directions, k=5)
        for folder, shard in ((tmp_path / "once", pool), (tmp_path / "twice", copied))
    )
    for one, two in zip(once.classes, twice.classes, strict=True):
        assert two.examples == 2 * one.examples
        if one.picks is not None:
            assert two.picks.ids.tolist() == one.picks.ids.tolist()


def test_merge__without_directions_or_labels(tmp_path):
    pool = dataclasses.replace(rows(10), labels=torch.full((10,), POOL_UNLABELLED))
    written = merge_shards(tmp_path, store(tmp_path, pool, 4)).to_dict()
    assert [(entry["class"], entry["examples"], entry["flagged"]) for entry in written["classes"]] == [
        ("unlabelled", 10, None)
    ]


def test_merge__counts_and_names_what_was_left_out(tmp_path):
    directions, pool = fitted(), rows(40)
    manifest = PoolManifest("f00d", "an encoder", examples=40, shard_size=16)
    for number in range(3):
        block = manifest.block(number)
        some = [i for i in block if i % 5 and number != 1]  # the second block holds no example
        piece = dataclasses.replace(
            PoolShard(*(column[some] for column in (pool.ids, pool.labels, pool.keys, pool.embeddings))),
            left_out={i: f"reason {i}" for i in block if i not in some},
        )
        write_pool_shard(score_shard(piece, directions), manifest.path(tmp_path, number), pool=manifest.digest)
    summary = merge_shards(tmp_path, manifest, directions=directions, k=40)
    left_out = [*range(0, 16, 5), *range(16, 32), 35]
    assert summary.n_left_out == len(left_out)
    assert summary.left_out == {i: f"reason {i}" for i in left_out}
    picked = {i for entry in summary.classes if entry.picks is not None for i in entry.picks.ids.tolist()}
    assert not picked & set(left_out)
    assert sum(entry.examples for entry in summary.classes) == 40 - len(left_out)


def test_merge__what_is_missing_damaged_or_old_is_an_error(tmp_path):
    directions = fitted()
    pool = store(tmp_path, rows(10), 4, directions)
    with pytest.raises(DataError, match="other directions"):
        merge_shards(tmp_path, pool, directions=fitted(5))
    path = pool.path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-1] + b"x")  # the values are last
    with pytest.raises(DataError, match=f"{path.name} is missing or damaged"):
        merge_shards(tmp_path, pool, directions=directions)
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name} is missing or damaged"):
        merge_shards(tmp_path, pool, directions=directions)


def test_summary__is_json_with_names_and_paths(tmp_path):
    directions = fitted()
    summary = merge_shards(tmp_path, store(tmp_path, rows(60), 32, directions), directions=directions, k=2)
    written = json.loads(json.dumps(summary.hardest(["a", "b", "c"], lambda i: f"{i}.png"), allow_nan=False))
    first = written["classes"][0]
    assert (first["class"], first["pattern"], len(first["hardest"])) == ("a", True, 2)
    assert first["hardest"][0]["path"] == f"{first['hardest'][0]['id']}.png"
    assert [entry["class"] for entry in summary.to_dict(["a", "b", "c"])["classes"]] == ["a", "b", "c", "3"]
