import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions import label_errors as suspects
from lightning_failures.interventions.label_errors import suspect_labels


def planted(seed=0, n=600, flips=0.1):
    """Three classes (axes 0-2) in three tints (axes 3-5, weaker). A model that reads the tint alone; flipped labels.

    Class k wears tint k, but for a minority, which the model gets wrong.
    """
    rng = np.random.default_rng(seed)
    true = np.arange(n) % 3
    minority = rng.random(n) < 0.08
    tint = np.where(minority, (true + 1) % 3, true)
    x = 0.25 * rng.normal(size=(n, 8))
    x[np.arange(n), true] += 2.0
    x[np.arange(n), 3 + tint] += 1.0
    flipped = rng.random(n) < flips
    labels = np.where(flipped, (true + rng.integers(1, 3, n)) % 3, true)
    return x, labels, tint, flipped, minority


def test_suspect_labels__catches_flips_and_spares_the_minority():
    x, labels, predictions, flipped, minority = planted()
    found = suspect_labels(x, labels, predictions)
    suspect = found.suspect.numpy()
    assert suspect[flipped].mean() > 0.5
    assert not suspect[minority & ~flipped].any()
    assert not suspect[~flipped].any()
    assert not suspect[labels == predictions].any()


def test_suspect_labels__the_evidence_is_that_of_the_definition():
    x, labels, predictions, *_ = planted(n=240)
    groups = np.arange(240) // 2
    found = suspect_labels(x, labels, predictions, groups=groups, folds=4)
    assert found.rows.tolist() == np.flatnonzero(labels != predictions).tolist()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for m, row in enumerate(found.rows.tolist()):
        assert (found.labels[m], found.predictions[m]) == (labels[row], predictions[row])
        if found.probability[m] < 0.1:
            cosine = np.where(groups == groups[row], -2.0, unit @ unit[row])
            nearest = np.argsort(-cosine)[:10]
            assert found.neighbours[m].tolist() == nearest.tolist()
            assert found.agreeing[m] == (labels[nearest] == predictions[row]).sum()
        else:
            assert found.agreeing[m] == -1
            assert found.neighbours[m].tolist() == [-1] * 10
    by_hand = (found.probability < 0.1) & (found.agreeing >= 8)
    assert found.suspect.nonzero().flatten().tolist() == found.rows[by_hand].tolist()
    ranked = found.ranked()
    assert sorted(ranked.tolist()) == by_hand.nonzero().flatten().tolist()
    assert (found.probability[ranked].diff() >= 0).all()


def test_suspect_labels__sources_are_no_witnesses_for_themselves():
    """Twelve renderings of one image, all with the label of the class that they resemble less than the true one."""
    rng = np.random.default_rng(0)
    true = np.arange(200) % 2
    x = np.where(true[:, None] == 0, 3.0, -3.0) * np.eye(4)[0] + 0.3 * rng.normal(size=(200, 4)) + 3 * np.eye(4)[3]
    labels = true.copy()
    source = np.r_[np.arange(188), np.full(12, 188)]
    x[188:] = x[0] + 1e-3 * rng.normal(size=(12, 4))
    labels[188:], predictions = 1, np.zeros(200, dtype=int)
    kept = suspect_labels(x, labels, predictions, groups=source).suspect
    alone = suspect_labels(x, labels, predictions).suspect
    assert kept[188:].all()
    assert not alone[188:].any()  # they vouch for one another


def test_suspect_labels__judges_candidates_only():
    x, labels, predictions, flipped, _ = planted()
    asked = np.arange(600) >= 300
    found = suspect_labels(x, labels, predictions, candidates=asked)
    unread = np.where(asked, predictions, 7)
    same = suspect_labels(x, labels, unread, candidates=asked)
    assert not found.suspect[:300].any()
    assert found.suspect[300:].numpy()[flipped[300:]].mean() > 0.5
    assert torch.equal(found.suspect, same.suspect)


def test_suspect_labels__blocks_do_not_matter(monkeypatch):
    x, labels, predictions, *_ = planted()
    whole = suspect_labels(x, labels, predictions)
    monkeypatch.setattr(suspects, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(suspects, "_OTHERS_AT_ONCE", 5)  # fewer than there are neighbours
    monkeypatch.setattr(suspects, "_CELLS_AT_ONCE", 100)
    blocks = suspect_labels(x, labels, predictions)
    assert torch.equal(whole.neighbours, blocks.neighbours)
    assert torch.equal(whole.suspect, blocks.suspect)


def test_suspect_labels__a_smaller_probe_sees_every_class():
    x, labels, predictions, flipped, minority = planted()
    chosen = suspects._capped(labels, np.flatnonzero(np.arange(600) % 5 > 0), 90, 0)
    assert np.bincount(labels[chosen]).tolist() == [30, 30, 30]
    suspect = suspect_labels(x, labels, predictions, probe_size=90).suspect.numpy()
    assert suspect[flipped].mean() > 0.5
    assert suspect[minority & ~flipped].mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_suspect_labels__any_float_and_callers_arrays_stay(dtype):
    x, labels, predictions, *_ = planted()
    tensor = torch.from_numpy(x).to(dtype)
    before = tensor.clone()
    found = suspect_labels(tensor, torch.from_numpy(labels), torch.from_numpy(predictions))
    assert torch.equal(tensor, before)
    expected = suspect_labels(tensor.double(), labels, predictions)
    assert (found.suspect != expected.suspect).sum() <= 2


def test_suspect_labels__nothing_to_judge():
    none = suspect_labels(np.empty((0, 3)), [], [])
    assert none.suspect.shape == (0,)
    assert none.neighbours.shape == (0, 10)
    right = suspect_labels(np.eye(3), [0, 1, 2], [0, 1, 2])
    assert right.suspect.tolist() == [False] * 3
    assert right.ranked().tolist() == []


def test_suspect_labels__too_little_evidence_suspects_nobody():
    # class 2 has one example: no probe that was fitted without it knows its class
    x = np.r_[np.eye(4)[[0] * 20], np.eye(4)[[1] * 20], np.eye(4)[[0]]]
    labels, predictions = np.r_[np.zeros(20), np.ones(20), 2], np.r_[np.zeros(20), np.ones(20), 0]
    found = suspect_labels(x, labels, predictions)
    assert found.probability.isnan().all()
    assert not found.suspect.any()
    # all of one class but the example itself, and fewer than ten others
    few = suspect_labels(np.ones((5, 2)), [0, 0, 0, 0, 1], [0, 0, 0, 0, 0])
    assert not few.suspect.any()


def test_suspect_labels__fewer_neighbours_than_asked():
    rng = np.random.default_rng(0)
    x = np.r_[np.tile([5.0, 0.0], (4, 1)), np.tile([0.0, 5.0], (5, 1))] + 0.01 * rng.normal(size=(9, 2))
    labels, predictions = np.array([0, 0, 0, 0, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    found = suspect_labels(x, labels, predictions, below=0.9)
    assert (found.neighbours[0] == -1).sum() == 2  # eight others
    assert found.agreeing.tolist() == [4]
    assert suspect_labels(x, labels, predictions, below=0.9, neighbours=4, agreeing=4).suspect.tolist()[-1]


def test_suspect_labels__wrong_arguments():
    x = np.eye(3)
    for options, message in (
        ({"agreeing": 11}, r"agreeing must be in 1 ... 10"),
        ({"neighbours": 0}, "neighbours must be >= 1"),
        ({"below": 1.5}, "below must be in 0 ... 1"),
        ({"folds": 1}, "folds must be >= 2"),
        ({"probe_size": 0}, "probe_size must be >= 1"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            suspect_labels(x, [0, 1, 2], [0, 1, 2], **options)
    with pytest.raises(DataError, match=r"labels must have shape \(3,\)"):
        suspect_labels(x, [0, 1], [0, 1, 2])
    with pytest.raises(DataError, match="not names"):
        suspect_labels(x, ["a", "b", "c"], [0, 1, 2])
    with pytest.raises(DataError, match="must be finite"):
        suspect_labels(x * np.nan, [0, 1, 2], [0, 1, 2])


class LargestTensor(TorchDispatchMode):
    """Notes the largest result of any operation."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


def test_suspect_labels__no_tensor_of_all_pairs():
    n, rng = 12_000, np.random.default_rng(0)
    x, labels = rng.normal(size=(n, 4)).astype(np.float32), rng.integers(0, 2, n)
    with LargestTensor() as largest:
        suspect_labels(x, labels, 1 - labels, candidates=np.arange(n) < 1500, below=1.0, probe_size=200, folds=2)
    assert largest.numel == suspects._ROWS_AT_ONCE * suspects._OTHERS_AT_ONCE < 1500 * n
