"""Cohen's kappa against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from lightning_failures.stats.agreement import cohen_kappa, positive_agreement


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_cohen_kappa__scikit_learns(pairs):
    one, other = map(np.array, zip(*pairs, strict=True))
    found = cohen_kappa(one, other)
    if found is None:
        assert (one == one[0]).all()
        assert (other == one[0]).all()
    else:
        assert found == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)


def test_positive_agreement__by_hand():
    one, other = np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 1, 0, 1, 0, 0], bool)
    assert positive_agreement(one, other) == pytest.approx(4 / 6)  # each shares 2 of its 3
    assert positive_agreement(one, one) == 1
    assert positive_agreement(one, ~one) == 0
    assert np.isnan(positive_agreement(one & False, other & False))


def test_positive_agreement__of_independent_judgements_is_their_share():
    rng = np.random.default_rng(0)
    found = [positive_agreement(*(rng.random((2, 500)) < 0.3)) for _ in range(100)]
    assert np.mean(found) == pytest.approx(0.3, abs=0.01)
