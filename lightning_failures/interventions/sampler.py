"""The one sampler that carries out weights: it stands in for the user's own, and draws the same until there are any.

Resampling, because a callback never sees the loss of a single example; or, for steps that ask for it, a weight of the
loss that travels with the index. Of an epoch that the user's sampler would have drawn, every example keeps its place
but for some that give theirs to further copies of heavier ones, or to examples that were added.
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
    """What changes in the epochs ``since <= epoch < until``.

    Attributes:
        since: First epoch.
        until: First epoch after it, or None.
        weights: (N,) float64 of all training examples.
        grow: Lengthen epochs, so that nothing is drawn less often.
        added: (E,) int64 indices of examples that join them (:class:`~.appended.AppendedDataset`), of weight 1.
        of_loss: The weights are those of the loss, and draws stay as they are.
    """

    since: int
    until: int | None
    weights: NDArray[np.float64]
    grow: bool = False
    added: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    of_loss: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors: the examples whose weight is not 1."""
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
        """Read what :meth:`to_dict` wrote.

        Raises:
            DataError: It is damaged.
        """
        saved = from_jsonable(_SavedPlan, state)
        ids, own, added = _numpy(saved.ids), _numpy(saved.weights), _numpy(saved.added)
        if ids.dtype != np.int64 or added.dtype != np.int64 or ids.ndim != 1 or added.ndim != 1:
            raise DataError("the indices of a plan are no rows of integers")
        if own.shape != ids.shape or not np.isfinite(own).all() or not (own >= 0).all():
            raise DataError("a plan has no weight for each of its examples")
        if (ids < 0).any() or (ids >= saved.examples).any() or (added < 0).any():
            raise DataError("a plan names examples that there are not")
        weights = np.ones(saved.examples)
        weights[ids] = own
        return cls(saved.since, saved.until, weights, saved.grow, added, saved.of_loss)


@dataclass(frozen=True)
class _SavedPlan:
    """A plan in a checkpoint; what was added later has a default."""

    since: int
    until: int | None
    grow: bool
    examples: int
    ids: Tensor
    weights: Tensor
    added: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    of_loss: bool = False


@dataclass(frozen=True)
class _SavedDraws:
    seed: int
    epoch: int
    plans: dict[str, tuple[Any, ...]]


@dataclass
class SamplingSchedule:
    """What the sampler draws by. It belongs to the callback and is in its checkpoints.

    Lightning calls ``iter()`` on a loader before ``set_epoch`` when it resumes, so the sampler asks here.

    Attributes:
        seed: Of all draws.
        epoch: Of the next pass over the training set.
        plans: For each intervention its plans, in the order in which they begin.

    >>> state = SamplingSchedule(seed=0)
    >>> state.add("upweight", SamplingPlan(since=1, until=3, weights=np.array([1.0, 2.0])))
    >>> for state.epoch in range(4):
    ...     print(state.weights())
    None
    [1. 2.]
    [1. 2.]
    None
    """

    seed: int
    epoch: int = 0
    plans: dict[str, list[SamplingPlan]] = field(default_factory=dict)

    def add(self, name: str, plan: SamplingPlan) -> None:
        """Let a plan follow on those of its intervention; what nobody can ask for any more is dropped."""
        plans = [old for old in self.plans.get(name, []) if old.since < plan.since]
        begun = [old for old in plans if old.since <= self.epoch][-1:]
        self.plans[name] = begun + [old for old in plans if old.since > self.epoch] + [plan]

    def weights(self, *, of_loss: bool = False) -> NDArray[np.float64] | None:
        """The product of the weights that are in effect, (N,) float64; None where all are 1."""
        product = None
        for plan in self._in_effect():
            if plan.of_loss is of_loss:
                product = plan.weights if product is None else product * plan.weights
        return None if product is None or bool((product == 1).all()) else product

    def added(self) -> NDArray[np.int64]:
        """The indices of all examples that have joined the training set, (E,)."""
        return np.concatenate([np.empty(0, dtype=np.int64), *(plan.added for plan in self._in_effect())])

    @property
    def grow(self) -> bool:
        """Whether epochs are longer than usual."""
        return any(plan.grow for plan in self._in_effect())

    def in_effect(self, name: str) -> SamplingPlan | None:
        """The plan of one intervention for the epoch that is drawn next."""
        plans = [plan for plan in self.plans.get(name, []) if plan.since <= self.epoch][-1:]
        return next((plan for plan in plans if plan.until is None or self.epoch < plan.until), None)

    def _in_effect(self) -> list[SamplingPlan]:
        return [plan for plan in map(self.in_effect, self.plans) if plan is not None]

    def to_dict(self) -> dict[str, Any]:
        """The state in a checkpoint; loads with ``weights_only=True``."""
        plans = {name: [plan.to_dict() for plan in plans] for name, plans in self.plans.items()}
        return {"seed": self.seed, "epoch": self.epoch, "plans": plans}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was written; samplers that hold this object see it.

        Raises:
            DataError: It is damaged.
        """
        saved = from_jsonable(_SavedDraws, state)
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
    """Resample an epoch so that each of its draws comes up in proportion to its weight.

    Draw i gets ``floor(c)`` or ``ceil(c)`` copies, c = ``draws`` * w_i / sum of w its expected number, exactly c in the
    mean: the whole parts for certain, the rest by systematic sampling of the fractional parts (Kitagawa, Monte Carlo
    Filter and Smoother, 1996, applied to the residuals), sorted by weight and at random among equals. So the share of
    each weight in an epoch is right to within one draw, and nothing is repeated that need not be. The first copy stays
    in its place; the others take, at random, the places of the draws that are left out.

    Args:
        base: (n,) int64, the indices of an epoch in their order.
        weights: (n,) float64 >= 0 of these draws.
        draws: Length of the new epoch, at least n - ``added``. What exceeds n - ``added`` is strewn in at random.
        rng: The only source of randomness.
        added: The last so many of ``base`` have no place of their own yet.

    Returns:
        (draws,) int64.

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
    copies, fractions = _split(weights * (draws / total))
    left = draws - int(copies.sum())
    if left:
        order = np.lexsort((rng.random(len(base)), weights))
        reached = np.cumsum(fractions[order])
        marks = (rng.random() + np.arange(left)) * (reached[-1] / left)
        np.add.at(copies, order[np.minimum(np.searchsorted(reached, marks, side="right"), len(base) - 1)], 1)
    own = len(base) - added
    kept, free = np.flatnonzero(copies[:own] > 0), np.flatnonzero(copies[:own] == 0)
    copies[kept] -= 1
    extra = rng.permutation(np.repeat(np.arange(len(base)), copies))
    strewn = rng.uniform(0, own, size=len(extra) - len(free))
    places = np.concatenate([kept, free, strewn])
    rows = np.concatenate([kept, extra])[np.argsort(places, kind="stable")]
    return np.asarray(base[rows])


def _split(expected: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Whole and fractional parts; what is whole up to rounding is whole."""
    whole = np.floor(expected + _ROUNDING)
    return whole.astype(np.int64), np.maximum(expected - whole, 0.0)


class WeightedSampler(DistributedSampler[int]):
    """Draws what another sampler draws, resampled by the weights of a :class:`SamplingSchedule` while there are any.

    Without weights it hands on the other's indices one by one: the same order, the same use of random numbers. With
    weights the other one decides which examples make an epoch, so weights multiply with those of a
    ``WeightedRandomSampler``; samplers with a torch generator get one of the seed and epoch, so that a resumed run
    draws the same.

    Examples that were added have weight 1 and make up for it with fewer draws of all others, or with a longer epoch.
    Weights of the loss, scaled to the mean 1, go with the indices.

    Where the other one is a ``DistributedSampler``, all processes resample the same whole epoch and take turns in it.
    Any other sampler of a process is resampled by itself. Lightning would wrap it again were it no DistributedSampler.

    Args:
        base: The sampler of the loader.
        state: What to draw by.
        size: Number of examples of the dataset.
    """

    def __init__(self, base: Any, state: SamplingSchedule, size: int) -> None:
        self.base, self.state, self._told = base, state, False
        self._shared, self._size = _is_shared(base), size
        replicas, rank = (base.num_replicas, base.rank) if self._shared else (1, 0)
        super().__init__(range(size), num_replicas=replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        weights, added = self.state.weights(), self.state.added()
        if not self._told:  # Lightning begins to draw for workers first, and in a resumed run that is no epoch 0
            self.set_epoch(self.state.epoch)
        drawn: Any = self.base if weights is None and not len(added) else self._draw(weights, added)
        losses = self.state.weights(of_loss=True)
        # the other's own iterator, which may have a state to keep
        return iter(drawn) if losses is None else self._with_losses(drawn, losses, len(added))

    def __len__(self) -> int:
        return self._grown(len(self.base)) if self.state.grow else len(self.base)

    def set_epoch(self, epoch: int) -> None:
        """For the other sampler; the weighted epochs are counted by the state."""
        self._told = True
        if callable(set_epoch := getattr(self.base, "set_epoch", None)):
            set_epoch(epoch)

    def __getattr__(self, name: str) -> Any:
        if name in ("base", "state"):  # not yet set
            raise AttributeError(name)
        return getattr(self.base, name)

    def _grown(self, length: int) -> int:
        """Length of an epoch in which nothing comes up less often than before."""
        weights, added = self.state.weights(), len(self.state.added())
        total = (self._size if weights is None else float(weights.sum())) + added
        return int(np.ceil(length * max(total / max(self._size, 1), 1.0) - _ROUNDING))

    def _draw(self, weights: NDArray[np.float64] | None, added: NDArray[np.int64]) -> Sequence[int]:
        rng = np.random.default_rng([self.state.seed, self.state.epoch])
        drawn = _whole_epoch(self.base, torch.Generator().manual_seed(int(rng.integers(2**62))), self.state.epoch)
        base = np.asarray(drawn)
        if base.ndim != 1 or base.dtype.kind not in "iu" or not len(base) or base.max() >= self._size:
            warnings.warn(
                f"The sampler {type(self.base).__name__} does not draw indices of the training set: interventions"
                " leave its epochs as they are.",
                stacklevel=2,
            )
            return drawn[self.rank :: self.num_replicas]
        own = np.ones(len(base)) if weights is None else weights[base]
        # a sampler that draws a part of the training set, or all of it several times, draws as much of what was added
        share = len(base) / self._size
        length = len(base) // self.num_replicas
        draws = self._grown(length) * self.num_replicas if self.state.grow else len(base)
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
    """Whether a sampler gives this process its share of an epoch that all processes draw alike."""
    if not isinstance(sampler, DistributedSampler):
        return False
    stock = type(sampler).__iter__ is DistributedSampler.__iter__
    return stock or _inside(sampler) is not None


def _inside(sampler: Any) -> Any:
    """The user's sampler in the wrapper that Lightning puts round it for several processes."""
    return getattr(getattr(sampler, "dataset", None), "_sampler", None)


def _whole_epoch(sampler: Any, generator: torch.Generator, epoch: int) -> list[Any]:
    """What all processes together would draw, padded or cut so that each has as much."""
    if _is_shared(sampler):
        if (inside := _inside(sampler)) is not None:
            drawn = _whole_epoch(inside, generator, epoch)
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
