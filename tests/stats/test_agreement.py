"""Cohen's kappa against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from lightning_failures.stats.agreement import cohen_kappa


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_cohen_kappa__scikit_learns(pairs):
    one, other = map(np.array, zip(*pairs, strict=True))
    found = cohen_kappa(one, other)
    if found is None:
        assert (one == one[0]).all()
        assert (other == one[0]).all()
    else:
        assert found == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
