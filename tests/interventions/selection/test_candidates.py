import numpy as np

from lightning_failures.interventions.selection.candidates import Candidates, best_candidates, identities


def test_identities__of_keys_depend_on_both_halves_and_the_seed():
    keys = np.array([[a, b] for a in range(40) for b in range(-20, 20)])
    assert len(np.unique(identities(keys, 0))) == len(keys)
    assert not (identities(keys, 0) == identities(keys, 1)).any()
    assert len(np.unique(identities(np.arange(1000), 0))) == 1000


def test_best_candidates__of_parts_is_that_of_all():
    rng = np.random.default_rng(0)
    n = 400
    rows = Candidates(
        labels=rng.integers(0, 4, n),
        values=rng.integers(0, 30, n).astype(np.float32),
        identity=identities(np.arange(n), 0),
        ids=np.arange(n),
        copies=np.ones(n, dtype=np.int64),
        embeddings=np.arange(n)[:, None],
    )
    whole = best_candidates(rows, 7)
    parts = [best_candidates(rows.take(part), 7) for part in np.array_split(rng.permutation(n), 5)]
    joined = best_candidates(Candidates.join(parts), 7)
    assert joined.ids.tolist() == whole.ids.tolist()
    assert (joined.embeddings[:, 0] == joined.ids).all()
    assert joined.keys is None
    assert np.bincount(whole.labels).tolist() == [7, 7, 7, 7]
    assert (np.diff(whole.values)[np.diff(whole.labels) == 0] >= 0).all()


def test_best_candidates__of_nothing():
    none = np.empty(0, dtype=np.int64)
    rows = Candidates(none, none.astype(np.float32), none.astype(np.uint64), none, none)
    assert len(best_candidates(rows, 3)) == 0
