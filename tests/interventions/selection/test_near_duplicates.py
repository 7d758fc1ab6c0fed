import numpy as np
import pytest

from lightning_failures.errors import DataError
from lightning_failures.interventions.selection import near_duplicates
from lightning_failures.interventions.selection.near_duplicates import distinct_rows, rows_near, usual_similarity


@pytest.mark.parametrize("pairs_at_once", [1, 64, 1 << 22])
def test_distinct_rows__agrees_with_the_definition(monkeypatch, pairs_at_once):
    monkeypatch.setattr(near_duplicates, "_PAIRS_AT_ONCE", pairs_at_once)
    rng = np.random.default_rng(0)
    x, training = rng.normal(size=(60, 3)), rng.normal(size=(5, 3))
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    expected, passed = [], 0
    for row in range(60):
        if len(expected) == 12:
            break
        others = [*training, *x[expected]]
        if max(cosine(x[row], other) for other in others) > 0.9:
            passed += 1
        else:
            expected.append(row)
    taken, dropped = distinct_rows(x, 12, similarity=0.9, training=[training[:2], training[2:]])
    assert taken.tolist() == expected
    assert dropped == passed
    assert passed > 3


def test_distinct_rows__zero_vectors_are_like_nothing():
    assert distinct_rows(np.zeros((3, 2)), 3, similarity=0.5)[0].tolist() == [0, 1, 2]
    assert distinct_rows(np.zeros((0, 2)), 3, similarity=0.5, training=[np.ones((1, 2))])[0].tolist() == []


def test_distinct_rows__other_length():
    with pytest.raises(DataError, match="must have 2 dimensions, got 3"):
        distinct_rows(np.ones((1, 2)), 1, similarity=0.5, training=[np.ones((1, 3))])


def test_rows_near__by_cosine_or_exactly():
    rng = np.random.default_rng(0)
    rows, others = rng.normal(size=(6, 16)).astype(np.float32), rng.normal(size=(20, 16)).astype(np.float32)
    others[3], others[9] = rows[1], 2 * rows[4]
    blocks = [others[:5], others[5:]]
    assert np.flatnonzero(rows_near(rows, blocks, similarity=0.999)).tolist() == [1, 4]
    assert np.flatnonzero(rows_near(rows, blocks, similarity=1)).tolist() == [1]
    assert not rows_near(rows, [], similarity=0.5).any()
    with pytest.raises(DataError, match="others must have 16 dimensions"):
        rows_near(rows, [others[:, :8]], similarity=0.5)


def test_usual_similarity__follows_the_encoder():
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(500, 64))
    assert usual_similarity(spread, least=0.995) == 0.995
    coarse = 1 + 1e-1 * rng.normal(size=(500, 3))  # maps all images close together
    found = usual_similarity(coarse, least=0.995)
    assert 0.999 < found <= 1
    assert rows_near(coarse[:250], [coarse[250:]], similarity=found).mean() < 0.1
    assert usual_similarity(np.repeat(spread, 3, axis=0), least=0.995) == 0.995  # copies are no neighbours
    assert usual_similarity(spread[:1], least=0.995) == 0.995
