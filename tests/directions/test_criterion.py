import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from lightning_failures.directions.criterion import CRITERION


@given(st.lists(st.tuples(st.booleans(), st.floats(-2, 2)), min_size=2, max_size=50))
def test_score__equals_scikit_learns(rows):
    correct, values = (np.array(column) for column in zip(*rows, strict=True))
    if correct.any() and not correct.all():
        expected = balanced_accuracy_score(correct, values >= 0)
        assert CRITERION.score(values, correct) == pytest.approx(expected)
        assert CRITERION.score(np.stack([values, -values - 1e-9]), correct)[0] == pytest.approx(expected)


def test_score__is_at_the_chance_level_for_random_values():
    rng = np.random.default_rng(0)
    correct = rng.random(20_000) < 0.8
    assert CRITERION.score(rng.normal(size=20_000), correct) == pytest.approx(CRITERION.chance_level, abs=0.02)


def test_stderr__is_binomial_and_never_zero():
    correct = np.arange(250) >= 83
    rng = np.random.default_rng(0)
    values = np.where(correct == (rng.random(250) < 0.65), 1.0, -1.0)
    assert CRITERION.stderr(values, correct) == pytest.approx(0.033, abs=0.003)
    assert CRITERION.stderr(np.where(correct, 1.0, -1.0), correct) > 0
