"""The sampler that carries out weights: it replaces the user's own, and draws the same while no weights are in effect.

Weights resample the epoch, because a callback never sees the loss of a single example; or, for training steps that ask
for it, a loss weight is attached to the index. In an epoch that the user's sampler would have drawn, every draw keeps
its position except for some that are replaced by additional copies of heavier examples, or by added examples.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DistributedSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from lightning_failures.core.serialization import from_jsonable
from lightning_failures.errors import DataError
from lightning_failures.interventions.appended import WeightedIndex

RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class SamplingPlan:
    """Weights and added examples of one intervention in the epochs ``since <= epoch < until``.

    Attributes:
        since: First epoch.
        until: First epoch after the plan, or None.
        weights: (N,) float64, weights of all training examples.
        grow: Whether epochs are lengthened, so that nothing is drawn less often.
        added: (E,) int64, indices of added examples (:class:`~.appended.AppendedDataset`), which have weight 1.
        of_loss: Whether the weights apply to the loss, so that draws stay unchanged.
    """

    since: int
    until: int | None
    weights: NDArray[np.float64]
    grow: bool = False
    added: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    of_loss: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values and tensors, with the examples whose weight is not 1."""
        rows = np.flatnonzero(self.weights != 1)
        return {
            "since": self.since,
            "until": self.until,
            "grow": self.grow,
            "examples": len(self.weights),
            "ids": torch.from_numpy(rows),
            "weights": torch.from_numpy(self.weights[rows]),
            "added": torch.from_numpy(self.added),
            "of_loss": self.of_loss,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SamplingPlan:
        """Read the result of :meth:`to_dict`.

        Raises:
            DataError: The state is damaged.
        """
        saved = from_jsonable(_SavedPlan, state)
        ids, own, added = _numpy(saved.ids), _numpy(saved.weights), _numpy(saved.added)
        if ids.dtype != np.int64 or added.dtype != np.int64 or ids.ndim != 1 or added.ndim != 1:
            raise DataError("the indices of a plan are not vectors of integers")
        if own.shape != ids.shape or not np.isfinite(own).all() or not (own >= 0).all():
            raise DataError("a plan does not have one finite weight >= 0 for each of its examples")
        if (ids < 0).any() or (ids >= saved.examples).any() or (added < 0).any():
            raise DataError("a plan has indices of examples that do not exist")
        weights = np.ones(saved.examples)
        weights[ids] = own
        return cls(saved.since, saved.until, weights, saved.grow, added, saved.of_loss)


@dataclass(frozen=True)
class _SavedPlan:
    """A plan in a checkpoint; fields added in later versions have a default."""

    since: int
    until: int | None
    grow: bool
    examples: int
    ids: Tensor
    weights: Tensor
    added: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    of_loss: bool = False


@dataclass(frozen=True)
class _SavedSchedule:
    """A schedule in a checkpoint."""

    seed: int
    epoch: int
    plans: dict[str, tuple[Any, ...]]


@dataclass
class SamplingSchedule:
    """The plans of all interventions and the current epoch. It belongs to the callback and is in its checkpoints.

    Lightning calls ``iter()`` on a loader before ``set_epoch`` when it resumes, so the sampler reads the epoch here.

    Attributes:
        seed: Seed of all draws.
        epoch: Epoch of the next pass over the training set.
        plans: Name of an intervention -> its plans, in the order in which they begin.

    >>> schedule = SamplingSchedule(seed=0)
    >>> schedule.add("upweight", SamplingPlan(since=1, until=3, weights=np.array([1.0, 2.0])))
    >>> for schedule.epoch in range(4):
    ...     print(schedule.weights())
    None
    [1. 2.]
    [1. 2.]
    None
    """

    seed: int
    epoch: int = 0
    plans: dict[str, list[SamplingPlan]] = field(default_factory=dict)

    def add(self, name: str, plan: SamplingPlan) -> None:
        """Append a plan to those of its intervention, and drop plans that can no longer take effect."""
        plans = [old for old in self.plans.get(name, []) if old.since < plan.since]
        begun = [old for old in plans if old.since <= self.epoch][-1:]
        self.plans[name] = begun + [old for old in plans if old.since > self.epoch] + [plan]

    def weights(self, *, of_loss: bool = False) -> NDArray[np.float64] | None:
        """Return the product of the weights in effect, (N,) float64; None if all are 1."""
        product = None
        for plan in self._in_effect():
            if plan.of_loss is of_loss:
                product = plan.weights if product is None else product * plan.weights
        return None if product is None or bool((product == 1).all()) else product

    def added(self) -> NDArray[np.int64]:
        """Return the indices of all added examples, (E,) int64."""
        return np.concatenate([np.empty(0, dtype=np.int64), *(plan.added for plan in self._in_effect())])

    @property
    def grow(self) -> bool:
        """Whether epochs are lengthened."""
        return any(plan.grow for plan in self._in_effect())

    def in_effect(self, name: str) -> SamplingPlan | None:
        """Return the plan of one intervention for the epoch that is drawn next, or None."""
        plans = [plan for plan in self.plans.get(name, []) if plan.since <= self.epoch][-1:]
        return next((plan for plan in plans if plan.until is None or self.epoch < plan.until), None)

    def _in_effect(self) -> list[SamplingPlan]:
        return [plan for plan in map(self.in_effect, self.plans) if plan is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, which loads with ``weights_only=True``."""
        plans = {name: [plan.to_dict() for plan in plans] for name, plans in self.plans.items()}
        return {"seed": self.seed, "epoch": self.epoch, "plans": plans}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint, also for the samplers that hold this object.

        Raises:
            DataError: The state is damaged.
        """
        saved = from_jsonable(_SavedSchedule, state)
        self.plans = {name: [SamplingPlan.from_dict(plan) for plan in plans] for name, plans in saved.plans.items()}
        self.seed, self.epoch = saved.seed, saved.epoch


def weighted_epoch(
    base: NDArray[np.int64],
    weights: NDArray[np.float64],
    draws: int,
    rng: np.random.Generator,
    *,
    added: int = 0,
) -> NDArray[np.int64]:
    """Resample an epoch so that each of its draws is repeated in proportion to its weight.

    Draw i gets ``floor(c)`` or ``ceil(c)`` copies, where c = ``draws`` * w_i / sum of w is the expected number, exactly
    c in the mean: the integer parts are deterministic, the rest is systematic sampling of the fractional parts
    (Kitagawa, Monte Carlo Filter and Smoother, 1996, applied to the residuals), sorted by weight and at random among
    equals. So the share of each weight in an epoch is right to within one draw, and no draw is repeated unnecessarily.
    The first copy keeps its position; the others take, at random, the positions of the draws that are left out.

    Args:
        base: (n,) int64, the indices of an epoch in their order.
        weights: (n,) float64 >= 0, weights of these draws.
        draws: Length of the new epoch, at least n - ``added``. Draws beyond n - ``added`` are inserted at random.
        rng: The only source of randomness.
        added: Number of draws at the end of ``base`` that have no position yet.

    Returns:
        (draws,) int64, the indices of the new epoch.

    >>> rng = np.random.default_rng(0)
    >>> weighted_epoch(np.array([5, 6, 7, 8]), np.array([1.0, 1.0, 1.0, 1.0]), 4, rng).tolist()
    [5, 6, 7, 8]
    >>> epoch = weighted_epoch(np.array([5, 6, 7, 8]), np.array([5.0, 1.0, 1.0, 1.0]), 8, rng)
    >>> np.bincount(epoch, minlength=9)[5:].tolist()
    [5, 1, 1, 1]
    """
    total = weights.sum()
    if total <= 0:
        return base
    # number of copies of each draw
    copies, fractions = _split(weights * (draws / total))
    left = draws - int(copies.sum())
    if left:
        order = np.lexsort((rng.random(len(base)), weights))
        reached = np.cumsum(fractions[order])
        marks = (rng.random() + np.arange(left)) * (reached[-1] / left)
        np.add.at(copies, order[np.minimum(np.searchsorted(reached, marks, side="right"), len(base) - 1)], 1)

    # first copies keep their positions; the others fill free positions, or are inserted between
    own = len(base) - added
    kept = np.flatnonzero(copies[:own] > 0)
    free = np.flatnonzero(copies[:own] == 0)
    copies[kept] -= 1
    extra = rng.permutation(np.repeat(np.arange(len(base)), copies))
    inserted = rng.uniform(0, own, size=len(extra) - len(free))
    places = np.concatenate([kept, free, inserted])
    rows = np.concatenate([kept, extra])[np.argsort(places, kind="stable")]
    return np.asarray(base[rows])


def _split(expected: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Split expected numbers into integer and fractional parts, up to rounding errors."""
    whole = np.floor(expected + _ROUNDING)
    return whole.astype(np.int64), np.maximum(expected - whole, 0.0)


class WeightedSampler(DistributedSampler[int]):
    """Draws what the loader's own sampler draws, resampled while weights of a :class:`SamplingSchedule` are in effect.

    Without weights it passes on the base sampler's indices one by one: the same order, the same use of random numbers.
    With weights the base sampler decides which examples are in an epoch, so weights multiply with those of a
    ``WeightedRandomSampler``; a base sampler with a torch generator gets one that depends on seed and epoch, so that a
    resumed run draws the same.

    Added examples have weight 1; their draws come from fewer draws of all others, or from a longer epoch. Loss weights,
    scaled to the mean 1, are attached to the indices.

    If the base sampler is a ``DistributedSampler``, all processes resample the same whole epoch and take turns in it.
    Any other base sampler is resampled in each process by itself. This class is a ``DistributedSampler`` because
    Lightning would wrap any other sampler.

    Args:
        base: The sampler of the loader.
        schedule: The plans to draw by.
        size: Number of examples of the dataset.
    """

    def __init__(self, base: Any, schedule: SamplingSchedule, size: int) -> None:
        self.base, self.schedule, self._size = base, schedule, size
        self._epoch_is_set = False
        replicas, rank = (base.num_replicas, base.rank) if _is_shared(base) else (1, 0)
        super().__init__(range(size), num_replicas=replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        weights, added = self.schedule.weights(), self.schedule.added()
        if not self._epoch_is_set:  # Lightning draws for workers before set_epoch, also in a resumed run
            self.set_epoch(self.schedule.epoch)
        drawn: Any = self.base if weights is None and not len(added) else self._draw(weights, added)
        losses = self.schedule.weights(of_loss=True)
        # the base sampler's own iterator, which may have a state to save
        return iter(drawn) if losses is None else self._with_losses(drawn, losses, len(added))

    def __len__(self) -> int:
        return self._grown(len(self.base)) if self.schedule.grow else len(self.base)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the base sampler; weighted epochs follow the schedule."""
        self._epoch_is_set = True
        if callable(set_epoch := getattr(self.base, "set_epoch", None)):
            set_epoch(epoch)

    def __getattr__(self, name: str) -> Any:
        if name in ("base", "schedule"):  # not yet set
            raise AttributeError(name)
        return getattr(self.base, name)

    def _grown(self, length: int) -> int:
        """Return the length of an epoch in which no example is drawn less often than before."""
        weights, added = self.schedule.weights(), len(self.schedule.added())
        total = (self._size if weights is None else float(weights.sum())) + added
        return int(np.ceil(length * max(total / max(self._size, 1), 1.0) - _ROUNDING))

    def _draw(self, weights: NDArray[np.float64] | None, added: NDArray[np.int64]) -> Sequence[int]:
        rng = np.random.default_rng([self.schedule.seed, self.schedule.epoch])
        drawn = _whole_epoch(self.base, torch.Generator().manual_seed(int(rng.integers(2**62))), self.schedule.epoch)
        base = np.asarray(drawn)
        if base.ndim != 1 or base.dtype.kind not in "iu" or not len(base) or base.max() >= self._size:
            warnings.warn(
                f"The sampler {type(self.base).__name__} does not draw indices of the training set, so interventions"
                " leave its epochs unchanged.",
                stacklevel=2,
            )
            return drawn[self.rank :: self.num_replicas]
        own = np.ones(len(base)) if weights is None else weights[base]
        # a base sampler that draws a part of the training set, or repeats it, draws the same share of added examples
        share = len(base) / self._size
        length = len(base) // self.num_replicas
        draws = self._grown(length) * self.num_replicas if self.schedule.grow else len(base)
        epoch = weighted_epoch(
            np.concatenate([base.astype(np.int64), added]),
            np.concatenate([own, np.full(len(added), share)]),
            draws,
            rng,
            added=len(added),
        )
        mine: list[int] = epoch[self.rank :: self.num_replicas].tolist()
        return mine

    def _with_losses(self, drawn: Any, losses: NDArray[np.float64], added: int) -> Iterator[int]:
        scale = (self._size + added) / (losses.sum() + added)
        for index in drawn:
            weight = losses[index] if index < self._size else 1.0
            yield WeightedIndex(index, float(weight * scale))


def _is_shared(sampler: Any) -> bool:
    """Return whether a sampler yields this process's share of an epoch that all processes draw alike."""
    if not isinstance(sampler, DistributedSampler):
        return False
    stock = type(sampler).__iter__ is DistributedSampler.__iter__
    return stock or _wrapped(sampler) is not None


def _wrapped(sampler: Any) -> Any:
    """Return the user's sampler inside Lightning's wrapper for several processes, or None."""
    return getattr(getattr(sampler, "dataset", None), "_sampler", None)


def _whole_epoch(sampler: Any, generator: torch.Generator, epoch: int) -> list[Any]:
    """Return the epoch that all processes draw together, padded or cut to equal shares."""
    if _is_shared(sampler):
        wrapped = _wrapped(sampler)
        if wrapped is not None:
            drawn = _whole_epoch(wrapped, generator, epoch)
            repeats: int = -(-sampler.total_size // len(drawn))
            return (drawn * repeats)[: sampler.total_size]
        whole = copy.copy(sampler)
        whole.rank, whole.num_replicas, whole.num_samples, whole.epoch = 0, 1, sampler.total_size, epoch
        return list(whole)
    if type(sampler) in RANDOM or isinstance(getattr(sampler, "__dict__", {}).get("generator"), torch.Generator):
        sampler = copy.copy(sampler)
        sampler.generator = generator
    elif callable(set_epoch := getattr(sampler, "set_epoch", None)):
        set_epoch(epoch)
    return list(sampler)


def _numpy(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = values.cpu().numpy()
    return array
