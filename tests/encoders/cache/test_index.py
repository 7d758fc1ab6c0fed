import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.encoders.cache.index import KeyIndex
from lightning_failures.encoders.cache.shard_file import Shard

PAIRS = st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=8, unique=True)
ALL_KEYS = np.array([(a, b) for a in range(-3, 4) for b in range(-3, 4)])


def shard(pairs):
    return Shard.of(np.array(pairs, dtype=np.int64), np.zeros((len(pairs), 1), dtype=np.float16))


def model(shards, kept):
    """Where each key is: (number among the kept shards, row), the earliest shard first."""
    places = {}
    for number, pairs in enumerate(shards):
        for row, pair in enumerate(pairs):
            places.setdefault(pair, (number, row))
    numbers = [number for number in range(len(shards)) if kept[number]]
    return {pair: (numbers.index(number), row) for pair, (number, row) in places.items() if kept[number]}


@given(st.lists(PAIRS, min_size=1, max_size=6), st.integers(0, 6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_index__is_a_dictionary_of_the_shards_in_their_order(shards, cut, kept):
    index = KeyIndex.empty().with_shards([shard(pairs) for pairs in shards[:cut]], 0)
    index = index.with_shards([shard(pairs) for pairs in shards[cut:]], len(shards[:cut]))
    kept = np.array(kept[: len(shards)])
    for index_now, mask in ((index, np.ones(len(shards), dtype=bool)), (index.only(kept), kept)):
        expected = model(shards, mask)
        entries = index_now.find(ALL_KEYS)
        found = {}
        for key, entry in zip(ALL_KEYS.tolist(), entries.tolist(), strict=True):
            if entry >= 0:
                found[tuple(key)] = (int(index_now.shard[entry]), int(index_now.place[entry]))
        assert found == expected
        assert len(index_now) == len(expected)


def test_entries_of__in_the_order_of_the_files():
    index = KeyIndex.empty().with_shards([shard([(3, 0), (1, 0)]), shard([(2, 0)]), shard([(9, 0), (0, 0)])], 0)
    entries = index.entries_of([0, 2])
    assert index.keys[0, entries].tolist() == [3, 1, 9, 0]
