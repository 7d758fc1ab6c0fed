"""Cards of features: the most active examples of the two classes, and counterfactuals as plain values."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.analysis.sparse_cards import TOP_EXAMPLES, HeldOut, card_entry, feature_card
from lightning_failures.core.serialization import from_jsonable
from lightning_failures.report.sparse import CardEntry
from lightning_failures.sparse import fit_sparse_layer

NAMES = ["cat", "dog", "fox"]


@pytest.fixture(scope="module")
def world():
    """A layer of one feature for each class, and held-out examples: ids from 500 on, two examples of each source."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = np.abs(rng.normal(size=(300, 4))) + 2 * np.eye(3, 4)[y]
    layer = fit_sparse_layer(x[:150], y[:150], n_lambdas=8)
    rows = slice(150, 300)
    held_out = HeldOut(x[rows], np.arange(150), y[rows], y[rows], np.arange(500, 650), np.arange(150) // 2)
    return layer, held_out


def test_card__shows_the_most_active_examples_of_both_classes(world):
    layer, held_out = world
    card = feature_card(layer, held_out, 1, (0, 1))
    assert [one.class_index for one in card.top] == [1, 0]
    for one in card.top:
        rows = np.flatnonzero(held_out.labels == one.class_index)
        expected = rows[np.argsort(-held_out.features[rows, 1])][:TOP_EXAMPLES]
        assert one.ids.tolist() == (expected + 500).tolist()
        assert one.values.tolist() == held_out.features[expected, 1].tolist()
    assert card.counterfactual.raised.mean() > 0.5


def test_entry__is_what_readers_read(world):
    layer, held_out = world
    entry = from_jsonable(CardEntry, card_entry(feature_card(layer, held_out, 1, (0, 1)), NAMES))
    assert (entry.feature, entry.label, entry.prediction) == (1, "cat", "dog")
    assert [one.class_name for one in entry.top] == ["dog", "cat"]
    assert len(entry.nearest_ids) == len(entry.nearest_margins) == len(entry.nearest_flip) == TOP_EXAMPLES
    low, high = entry.raised.interval
    assert low < entry.raised.rate < high
    independent = feature_card(layer, HeldOut(**vars(held_out) | {"sources": None}), 1, (0, 1))
    assert from_jsonable(CardEntry, card_entry(independent, NAMES)).raised.rate == entry.raised.rate


def test_condition__has_the_names_of_its_classes(world):
    layer, held_out = world
    card = feature_card(layer, held_out, 1, (0, 1), first=1)
    assert (card.label, card.prediction) == (1, 2)
    assert [one.class_index for one in card.top] == [2, 1]
