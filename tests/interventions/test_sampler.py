"""The sampler: proportions, places, seeds, processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_failures.interventions.sampler import SamplingPlan, SamplingSchedule, WeightedSampler, weighted_epoch

SIZE = 40
WEIGHTS = np.where(np.arange(SIZE) % 4 == 0, 3.0, 1.0)


def state(weights=WEIGHTS, *, seed=0, epoch=1, grow=False) -> SamplingSchedule:
    state = SamplingSchedule(seed, epoch)
    if weights is not None:
        state.add("upweight", SamplingPlan(1, None, np.asarray(weights, dtype=float), grow))
    return state


@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 7.0]), min_size=1, max_size=60).filter(any),
    st.integers(0, 30),
    st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_weighted_epoch__copies_are_the_expected_number_rounded_up_or_down(weights, more, seed):
    weights, base = np.array(weights), np.arange(len(weights)) + 100
    epoch = weighted_epoch(base, weights, len(base) + more, np.random.default_rng(seed))
    assert len(epoch) == len(base) + more
    copies = np.bincount(epoch - 100, minlength=len(base))
    expected = weights * (len(epoch) / weights.sum())
    assert (np.abs(copies - expected) < 1 + 1e-6).all()
    for weight in np.unique(weights):  # a stratum is right to within one draw
        mine = weights == weight
        assert abs(copies[mine].sum() - expected[mine].sum()) < 2


def test_weighted_epoch__expectation_is_proportional_to_the_weight():
    rng, copies = np.random.default_rng(0), np.zeros(SIZE)
    for _ in range(4000):
        copies += np.bincount(weighted_epoch(np.arange(SIZE), WEIGHTS, SIZE, rng), minlength=SIZE)
    expected = WEIGHTS * SIZE / WEIGHTS.sum()
    assert np.abs(copies / 4000 - expected).max() < 4.5 * np.sqrt(0.25 / 4000)


def test_weighted_epoch__all_but_the_replaced_stay_in_their_places():
    base = np.random.default_rng(1).permutation(SIZE)
    epoch = weighted_epoch(base, WEIGHTS[base], SIZE, np.random.default_rng(0))
    kept = np.isin(base, epoch)
    assert (epoch[kept] == base[kept]).all()
    assert (WEIGHTS[epoch[~kept]] == 3).all()
    assert (WEIGHTS[base[~kept]] == 1).all()


def test_weighted_epoch__equal_weights_and_no_weight_at_all_change_nothing():
    base, rng = np.array([3, 1, 2]), np.random.default_rng(0)
    for weights in (np.full(3, 7.3), np.zeros(3)):
        assert weighted_epoch(base, weights, 3, rng).tolist() == [3, 1, 2]


SAMPLERS = {
    "in order": lambda: SequentialSampler(range(SIZE)),
    "shuffled": lambda: RandomSampler(range(SIZE)),
    "own generator": lambda: RandomSampler(range(SIZE), generator=torch.Generator().manual_seed(3)),
    "weighted": lambda: WeightedRandomSampler([1.0] * 20 + [5.0] * 20, 30),
    "subset": lambda: SubsetRandomSampler(range(0, SIZE, 2)),
    "of one's own": lambda: [4, 2, 0, 38],
    "distributed": lambda: DistributedSampler(range(SIZE), num_replicas=3, rank=1),
    "wrapped by Lightning": lambda: DistributedSamplerWrapper(
        RandomSampler(range(SIZE)), num_replicas=3, rank=2, shuffle=True
    ),
}


@pytest.mark.parametrize("weights", [None, np.ones(SIZE)])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_sampler__without_weights_is_the_one_inside(kind, weights):
    plain, wrapped = SAMPLERS[kind](), WeightedSampler(SAMPLERS[kind](), state(weights), SIZE)
    seen = []
    for sampler in (plain, wrapped):
        torch.manual_seed(5)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(4)
        passes = [list(sampler), list(sampler)]
        seen.append((passes, len(sampler), torch.get_rng_state().tolist()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", ["distributed", "wrapped by Lightning"])
def test_sampler__before_it_is_told_the_epoch_it_is_that_of_the_state(kind):
    """In a resumed run workers are given their first batches before Lightning says which epoch it is."""
    plain, wrapped = SAMPLERS[kind](), WeightedSampler(SAMPLERS[kind](), state(None), SIZE)
    wrapped.schedule.epoch = 4
    plain.set_epoch(4)
    seen = []
    for sampler in (plain, wrapped):
        torch.manual_seed(5)
        seen.append(list(sampler))
    assert seen[0] == seen[1]
    assert wrapped.base.epoch == 4


@pytest.mark.parametrize("kind", SAMPLERS)
def test_sampler__length_stays_and_heavy_examples_come_more_often(kind):
    sampler = WeightedSampler(SAMPLERS[kind](), state(), SIZE)
    drawn = []
    for sampler.schedule.epoch in range(1, 60):
        epoch = list(sampler)
        assert len(epoch) == len(sampler) == len(SAMPLERS[kind]())
        drawn += epoch
    plain = [i for _ in range(59) for i in SAMPLERS[kind]()]
    assert np.mean(WEIGHTS[drawn] == 3) > np.mean(WEIGHTS[plain] == 3) + 0.1


@pytest.mark.parametrize("kind", SAMPLERS)
def test_sampler__an_epoch_follows_from_seed_and_epoch_alone(kind):
    again = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        sampler = WeightedSampler(SAMPLERS[kind](), state(epoch=6), SIZE)
        before = torch.get_rng_state()
        again.append(list(sampler))
        assert torch.equal(before, torch.get_rng_state())
        sampler.set_epoch(99)  # what Lightning says after it has called iter()
        assert list(sampler) == again[-1]
    assert again[0] == again[1]
    if kind != "of one's own":
        assert list(WeightedSampler(SAMPLERS[kind](), state(epoch=7), SIZE)) != again[0]
    assert list(WeightedSampler(SAMPLERS[kind](), state(epoch=6, seed=1), SIZE)) != again[0] or kind == "of one's own"


@pytest.mark.parametrize("inside", [None, lambda: RandomSampler(range(SIZE))])
@pytest.mark.parametrize("grow", [False, True])
def test_sampler__processes_share_one_epoch(inside, grow):
    def whole(replicas):
        shares = []
        for rank in range(replicas):
            torch.manual_seed(rank)  # the streams of processes need not be equal
            base = (
                DistributedSampler(range(SIZE), num_replicas=replicas, rank=rank)
                if inside is None
                else DistributedSamplerWrapper(inside(), num_replicas=replicas, rank=rank)
            )
            sampler = WeightedSampler(base, state(grow=grow), SIZE)
            shares.append(list(sampler))
            assert len(shares[-1]) == len(sampler)
        return np.stack(shares, axis=1).reshape(-1)

    one, two, three = whole(1), whole(2), whole(3)
    assert one.tolist() == two.tolist()
    # 40 examples do not divide by 3: two are drawn once more
    assert len(three) == (63 if grow else 42)
    copies = np.bincount(two, minlength=SIZE)
    expected = WEIGHTS if grow else WEIGHTS * SIZE / WEIGHTS.sum()
    assert (np.abs(copies - expected) < 1).all()


def test_sampler__a_longer_epoch_leaves_nothing_out():
    sampler = WeightedSampler(RandomSampler(range(SIZE)), state(grow=True), SIZE)
    assert len(sampler) == 60
    assert np.bincount(list(sampler)).tolist() == WEIGHTS.tolist()


@pytest.mark.parametrize("draws", [["a", "b"], [[0, 1], [2, 3]], [SIZE]])
def test_sampler__what_are_no_indices_of_the_training_set_stays_with_a_warning(draws):
    with pytest.warns(UserWarning, match="does not draw indices"):
        assert list(WeightedSampler(draws, state(), SIZE)) == draws


def test_sampler__other_attributes_are_those_of_the_one_inside():
    sampler = WeightedSampler(WeightedRandomSampler([1.0] * SIZE, 30), state(), SIZE)
    assert len(sampler.weights) == SIZE
    assert isinstance(sampler, DistributedSampler)  # or Lightning would wrap it


def test_state__plans_of_later_epochs_do_not_act_early_and_old_ones_go():
    draws = SamplingSchedule(0)
    for since in (1, 2, 2, 5):
        draws.add("a", SamplingPlan(since, None, np.array([1.0, since + 1.0])))
    draws.add("b", SamplingPlan(2, 4, np.array([3.0, 1.0])))
    seen = {}
    for draws.epoch in range(6):
        weights = draws.weights()
        seen[draws.epoch] = None if weights is None else weights.tolist()
    assert seen == {0: None, 1: [1, 2], 2: [3, 3], 3: [3, 3], 4: [1, 3], 5: [1, 6]}
    draws.add("a", SamplingPlan(6, None, np.ones(2)))
    assert [plan.since for plan in draws.plans["a"]] == [5, 6]


def test_state__goes_through_a_checkpoint(tmp_path):
    before = state(np.array([1.0, 2.5, 1.0]), epoch=3, seed=4)
    torch.save(before.to_dict(), tmp_path / "state.pt")
    after = SamplingSchedule(0)
    after.load(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (after.seed, after.epoch) == (4, 3)
    assert after.weights().tolist() == [1.0, 2.5, 1.0]
