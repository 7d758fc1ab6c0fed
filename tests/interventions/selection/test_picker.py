import copy
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.encoders.cache.store import EmbeddingCache, content_keys
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.selection.picker import PoolSelector

NAN = float("nan")
RULES = ("decision_value", "confidence", "flagged_confidence", "random")


def pool(n, *, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.permutation(10 * n)[:n],
        "labels": rng.integers(0, classes, n),
        "decision_values": rng.normal(size=n).astype(np.float32),
        "confidence": rng.random(n).astype(np.float32),
        "embeddings": rng.normal(size=(n, 4)).astype(np.float32),
    }


def feed(picker, rows, order, blocks=1):
    for block in np.array_split(order, blocks):
        part = {name: column[block] for name, column in rows.items()}
        picker.add(part.pop("ids"), part.pop("labels"), **part)
    return picker


def plain(picks):
    """All that a result says, in plain values."""
    return picks.seen, {
        label: {name: v.tolist() if isinstance(v, torch.Tensor) else v for name, v in vars(mine).items()}
        for label, mine in picks.classes.items()
    }


@pytest.mark.parametrize("by", RULES)
def test_picker__takes_what_sorting_the_whole_pool_would(by):
    rows = pool(3000)
    picks = feed(PoolSelector(20, by=by), rows, np.arange(3000), blocks=11).pick(similarity=1.0)
    for label, mine in picks.classes.items():
        of_class = np.flatnonzero(rows["labels"] == label)
        if by == "flagged_confidence":
            of_class = of_class[rows["decision_values"][of_class] < 0]
        if by != "random":
            column = rows["decision_values" if by == "decision_value" else "confidence"]
            best = of_class[np.argsort(column[of_class])][:20]
            assert mine.ids.tolist() == rows["ids"][best].tolist()
            assert mine.values.tolist() == column[best].tolist()
        assert mine.eligible == len(of_class)
        assert mine.seen == (rows["labels"] == label).sum()
        assert len(mine.ids) == 20
        assert mine.shortfall is None
    assert picks.seen == 3000
    assert len(picks.ids) == len(picks.labels) == 60


def test_picker__random_is_uniform_and_follows_the_seed():
    ids = np.arange(200)
    hits = np.zeros(200)
    for seed in range(400):
        picker = PoolSelector(20, by="random", seed=seed)
        picker.add(ids, ids * 0)
        chosen = picker.pick().ids.numpy()
        hits[chosen] += 1
    # 400 draws of a tenth: mean 40, variance 36
    assert ((hits - 40) ** 2 / 36).sum() == pytest.approx(200, abs=4 * np.sqrt(2 * 200))
    again = PoolSelector(20, by="random", seed=399)
    again.add(ids[::-1], ids * 0)
    assert again.pick().ids.tolist() == chosen.tolist()


@st.composite
def shards(draw):
    """Rows with ties, copies, NaN and absent classes; two orders and splits of them."""
    n = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    content = rng.integers(0, max(1, n), n)  # copies share everything but the id
    of_content = {
        "labels": rng.integers(0, 3, n),
        "decision_values": rng.choice([-2.0, -1.0, -0.5, 0.5, NAN], n),
        "confidence": rng.choice([0.1, 0.2, 0.3, NAN], n),
        "embeddings": rng.choice([-1.0, 0.0, 1.0], (n, 2)),
        "keys": rng.integers(-(2**63), 2**63 - 1, (n, 2)),
    }
    rows = {"ids": rng.permutation(n)} | {name: column[content] for name, column in of_content.items()}
    blocks = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    return rows, (np.arange(n), rng.permutation(n)), blocks, draw(st.integers(1, 4))


@settings(max_examples=120, deadline=None)
@given(shards(), st.sampled_from(RULES), st.integers(1, 2))
def test_picker__order_blocks_and_shards_do_not_matter(case, by, reserve):
    rows, orders, blocks, parts = case
    options = {"by": by, "reserve": reserve, "classes": [0, 1, 2, 5], "training_keys": rows["keys"][:3]}
    once = feed(PoolSelector(4, **options), rows, orders[0], blocks[0]).pick(similarity=0.99)
    shard = [feed(PoolSelector(4, **options), rows, order, blocks[1]) for order in np.array_split(orders[1], parts)]
    first, *others = reversed(shard)
    for other in others:
        before = plain(copy.deepcopy(other).pick())
        first.merge(other)
        assert plain(other.pick()) == before
    assert plain(first.pick(similarity=0.99)) == plain(once)
    chosen = once.ids.tolist()
    assert len(set(chosen)) == len(chosen)
    assert all(len(mine.ids) <= min(4, mine.eligible) for mine in once.classes.values())
    assert once.shortfalls[5] == ("empty pool" if once.seen == 0 else "pool class absent")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_picker__order_does_not_matter_where_copies_differ_in_value(seed, blocks):
    rng = np.random.default_rng(seed)
    n = 40
    rows = {"ids": np.arange(n), "labels": rng.integers(0, 2, n), "confidence": rng.integers(0, 6, n) / 6}
    rows["keys"] = rng.integers(0, 12, (n, 1)) * np.array([[1, 1]])
    one, other = (
        feed(PoolSelector(2, by="confidence", reserve=1), rows, order, blocks).pick()
        for order in (np.arange(n), rng.permutation(n))
    )
    assert one.ids.tolist() == other.ids.tolist()


def test_picker__classes_without_svm_are_never_picked_by_decision_value():
    for by in ("decision_value", "flagged_confidence"):
        picker = PoolSelector(2, by=by)
        picker.add([0, 1, 2], [0, 0, 1], decision_values=[NAN, NAN, -1.0], confidence=[0.0, 0.0, 0.9])
        picks = picker.pick()
        assert picks.ids.tolist() == [2]
        assert set(picks.shortfalls) == {0, 1}
        assert picks.classes[0].seen == 2
        assert picks.classes[0].eligible == 0


def test_picker__empty_pool_absent_class_and_small_pool():
    picker = PoolSelector(3, by="confidence", classes=[0, 1])
    empty = picker.pick()
    assert empty.seen == 0
    assert empty.ids.tolist() == []
    assert empty.labels.tolist() == []
    assert empty.shortfalls == {0: "empty pool", 1: "empty pool"}
    picker.add([], [], confidence=[])
    picker.add([5, 6, 7], [0, 0, 9], confidence=[0.5, NAN, 0.1])
    picks = picker.pick()
    assert picks.ids.tolist() == [5]
    assert picks.labels.tolist() == [0]
    assert picks.seen == 3
    assert picks.shortfalls == {0: "1 of 3: the pool has no more", 1: "pool class absent"}
    assert PoolSelector(3).pick().classes == {}


def test_picker__ties_are_not_broken_by_the_order_of_the_pool():
    picker = PoolSelector(50, by="confidence")
    picker.add(np.arange(1000), np.zeros(1000, dtype=int), confidence=np.zeros(1000))
    chosen = picker.pick().ids.float()
    assert chosen.max() > 800
    assert 350 < chosen.mean() < 650


def test_picker__exact_copies_of_pool_and_training_images():
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[3] = images[0]
    keys = content_keys(images)
    picker = PoolSelector(4, by="confidence", training_keys=keys[1:2])
    picker.add(range(6), [0, 0, 0, 0, 0, 1], confidence=[0.1, 0.0, 0.2, 0.1, 0.3, 0.4], keys=keys)
    picker.add([9], [1], confidence=[0.0], keys=keys[1:2])  # a training image under another label
    zero, one = picker.pick().classes.values()
    assert zero.ids.tolist() == [0, 2, 4]
    assert zero.copies == 1
    assert zero.in_training == 1
    assert zero.seen == 5
    assert zero.eligible == 4
    assert one.ids.tolist() == [5]
    assert one.in_training == 1


def test_picker__near_duplicates_are_replaced_from_the_reserve():
    rng = np.random.default_rng(0)
    base = np.eye(8)
    x = np.repeat(base, 3, axis=0) + 1e-3 * rng.normal(size=(24, 8))  # eight images, three near-copies of each
    training = [base[:1], base[1:2] * 7]
    picker = PoolSelector(5, by="confidence", reserve=8)
    picker.add(np.arange(24), np.zeros(24, dtype=int), confidence=np.arange(24) / 24, embeddings=x.astype(np.float16))
    mine = picker.pick(training=lambda label: iter(training)).classes[0]
    assert mine.ids.tolist() == [6, 9, 12, 15, 18]
    assert mine.near_duplicates == 6 + 4 * 2  # all of the first two images, two before each further pick
    assert picker.pick(similarity=1.0, training=lambda label: training).ids.tolist() == [0, 1, 2, 3, 4]


def test_picker__says_when_near_duplicates_use_up_the_reserve():
    picker = PoolSelector(5, by="confidence", reserve=2)
    ids = np.arange(100)
    picker.add(ids, ids * 0, confidence=ids / 100, embeddings=np.ones((100, 3)))
    assert picker.pick().shortfalls == {0: "1 of 5: the candidates that were kept are near-duplicates; raise reserve"}


def test_picker__looks_embeddings_up_in_the_store(tmp_path):
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    keys, store = content_keys(images), EmbeddingCache(tmp_path).store("an encoder")
    store.put(keys, torch.eye(4).repeat_interleave(2, dim=0))
    picker = PoolSelector(3, by="confidence")
    picker.add(range(8), [0] * 8, confidence=torch.arange(8) / 8, keys=keys)
    assert picker.pick(lookup=store.get).ids.tolist() == [0, 2, 4]
    assert picker.pick().ids.tolist() == [0, 1, 2]


def test_picker__survives_pickling_between_processes():
    rows = pool(200)
    shard = feed(PoolSelector(5), rows, np.arange(200), blocks=3)
    assert plain(pickle.loads(pickle.dumps(shard)).pick()) == plain(shard.pick())


@pytest.mark.parametrize("order", ["random", "worst first"])
def test_picker__memory_does_not_grow_with_the_pool(order):
    def peak(n):
        picker, rng = PoolSelector(10, by="confidence"), np.random.default_rng(0)
        tracemalloc.start()
        for start in range(0, n, 500):
            ids = np.arange(start, start + 500)
            confidence = rng.random(500) if order == "random" else 1 - ids / n
            picker.add(ids, ids % 5, confidence=confidence, embeddings=rng.random((500, 16), dtype=np.float32))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(200_000) < 1.2 * peak(20_000)


def test_picker__callers_arrays_stay_as_they_are():
    rows = pool(50)
    before = copy.deepcopy(rows)
    feed(PoolSelector(5), rows, np.arange(50)).pick()
    assert all((rows[name] == before[name]).all() for name in rows)


def test_picker__wrong_options_and_blocks():
    with pytest.raises(ConfigurationError, match="by must be one of"):
        PoolSelector(1, by="confident")
    for options in ({"k": 0}, {"k": 1, "reserve": 0}, {"k": 1.5}):
        with pytest.raises(ConfigurationError, match=">= 1"):
            PoolSelector(**options)
    with pytest.raises(ConfigurationError, match="similarity"):
        PoolSelector(1).pick(similarity=1.1)
    with pytest.raises(ConfigurationError, match="k must be the same"):
        PoolSelector(1).merge(PoolSelector(2))
    picker = PoolSelector(1, by="confidence")
    with pytest.raises(DataError, match="needs confidence"):
        picker.add([1], [0], decision_values=[0.0])
    with pytest.raises(DataError, match=r"confidence must have shape \(1,\)"):
        picker.add([1], [0], confidence=[0.0, 1.0])
    with pytest.raises(DataError, match="integers"):
        picker.add(["a"], [0], confidence=[0.0])
    with pytest.raises(DataError, match=r"keys must be integers of shape \(1, 2\)"):
        picker.add([1], [0], confidence=[0.0], keys=[1, 2])
    picker.add([1], [0], confidence=[0.0])
    with pytest.raises(DataError, match="Either all blocks or none must have keys"):
        picker.add([2], [0], confidence=[0.0], embeddings=[[1.0]])
    with pytest.raises(DataError, match="training needs embeddings"):
        picker.pick(training=lambda label: [])
    with pytest.raises(DataError, match="lookup needs the keys"):
        picker.pick(lookup=lambda keys: keys)
    with pytest.raises(DataError, match="needs keys in every block"):
        PoolSelector(1, by="random", training_keys=[[1, 2]]).add([1], [0])


def test_pick__images_of_the_validation_set_are_counted_and_never_picked():
    picker = PoolSelector(2, by="decision_value")
    values = [-5.0, -4.0, -3.0, -2.0, -1.0, -1.0]
    picker.add(range(6), [0, 0, 0, 0, 0, 1], decision_values=values, in_validation=[True, *[False] * 4, True])
    found = picker.pick(in_validation=[1], suspected=[1, 2])
    assert found.classes[0].ids.tolist() == [3, 4]
    assert (found.classes[0].in_validation, found.classes[0].suspected, found.classes[0].eligible) == (2, 1, 4)
    assert found.classes[1].in_validation == 1
    assert found.classes[1].shortfall == "only copies of validation images"
    other = PoolSelector(2, by="decision_value")
    other.add([7], [0], decision_values=[-9.0], in_validation=[True])
    picker.merge(other)
    assert picker.pick().classes[0].in_validation == 2
    few = picker.pick(in_validation=[1, 2, 3]).classes[0]
    assert (few.ids.tolist(), few.shortfall) == ([4], "1 of 2: the pool has no more")


# -- diverse picks -------------------------------------------------------------------------------------------------


def clusters(*sizes, flagged=True):
    """Rows of one class in tight clusters, the largest one the hardest."""
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    n = len(cluster)
    values = np.linspace(-1.0, -0.1, n) if flagged else np.linspace(-0.1, 1.0, n)
    embeddings = np.eye(8)[cluster] + 0.02 * rng.normal(size=(n, 8))
    rows = {"ids": np.arange(n), "labels": np.zeros(n, dtype=np.int64), "decision_values": values.astype(np.float32)}
    return rows | {"embeddings": embeddings.astype(np.float32)}, cluster


def test_picker__diverse_picks_come_from_all_clusters():
    rows, cluster = clusters(30, 8, 6, 4)
    picker = feed(PoolSelector(4, by="decision_value", reserve=12), rows, np.arange(48), blocks=5)
    hardest = picker.pick(similarity=1.0).classes[0]
    spread = picker.pick(similarity=1.0, diverse=True).classes[0]
    assert set(cluster[hardest.ids]) == {0}
    assert sorted(cluster[spread.ids]) == [0, 1, 2, 3]
    assert spread.ids[0] == 0  # the hardest
    assert spread.values.tolist() == sorted(spread.values.tolist())  # the best first
    assert spread.shortfall is None


def test_picker__diverse_picks_depend_on_neither_order_nor_blocks():
    rows, _ = clusters(30, 8, 6, 4)
    expected = feed(PoolSelector(4, by="decision_value", reserve=12), rows, np.arange(48)).pick(diverse=True)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(48)
        picker = feed(PoolSelector(4, by="decision_value", reserve=12), rows, order, blocks=1 + seed)
        assert plain(picker.pick(diverse=True)) == plain(expected)


def test_picker__diverse_picks_are_flagged_while_there_are_enough():
    rows, _ = clusters(30, 8, 6, 4, flagged=False)
    flagged = int((rows["decision_values"] < 0).sum())
    assert flagged == 5
    few = feed(PoolSelector(3, by="decision_value", reserve=12), rows, np.arange(48)).pick(similarity=1.0, diverse=True)
    assert (few.classes[0].values < 0).all()
    more = feed(PoolSelector(9, by="decision_value"), rows, np.arange(48)).pick(similarity=1.0, diverse=True)
    assert more.classes[0].ids.tolist() == list(range(9))  # all flagged ones, then the hardest others


def test_picker__diverse_picks_hold_no_near_duplicates_and_no_training_images():
    rows, cluster = clusters(30, 8, 6, 4)
    picker = feed(PoolSelector(4, by="decision_value", reserve=12), rows, np.arange(48))
    picks = picker.pick(similarity=0.9, training=lambda _: [np.eye(8)[:1]], diverse=True).classes[0]
    assert sorted(cluster[picks.ids]) == [1, 2, 3]
    assert picks.shortfall.startswith("3 of 4: ")


def test_picker__diverse_picks_need_embeddings():
    picker = PoolSelector(2, by="decision_value")
    picker.add([1, 2, 3], [0, 0, 0], decision_values=[-1.0, -2.0, -3.0])
    with pytest.raises(DataError, match="diverse needs embeddings"):
        picker.pick(diverse=True)
