import random

import numpy as np
import pytest
import torch

from lightning_failures.core.rng import isolated_rng, seed_all


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


def draw_all():
    random.random()
    np.random.random()  # noqa: NPY002
    torch.rand(1)


def test_isolated_rng__restores_all_generators():
    before = states()
    with isolated_rng():
        draw_all()
        assert states() != before
    assert states() == before


def test_isolated_rng__restores_after_an_exception():
    def fail_inside():
        with isolated_rng():
            draw_all()
            raise KeyError("planted")

    before = states()
    with pytest.raises(KeyError, match="planted"):
        fail_inside()
    assert states() == before


def test_seed_all__equal_seeds_give_equal_numbers():
    drawn = []
    for seed in (3, 3, 4):
        with isolated_rng():
            seed_all(seed)
            drawn.append((random.random(), np.random.random(), torch.rand(1).item()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))
