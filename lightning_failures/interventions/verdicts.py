"""Whether an intervention helped: from outcomes with it and without it to one word, an interval and a sentence.

A training that improves proves nothing, because it might have improved without the intervention. What can be said comes
from trainings that differ in the intervention alone, or from classes that were treated by lot.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array, as_mask, as_vector
from lightning_failures.core.hashing import stable_hash
from lightning_failures.errors import ConfigurationError, DataError

VerdictOutcome = Literal["helped", "no evidence", "hurt", "not measured"]

MIN_EXAMPLES = 10
"""With fewer examples, or fewer groups of examples, nothing is said."""

MIN_CLASSES = 20
"""With fewer classes a lottery over classes says nothing."""

_CELLS_AT_ONCE = 1 << 22
_ROUNDING = 1e-12
_EXACT = 1 << 18  # assignments that are all gone through; C(20, 10) are fewer


@dataclass(frozen=True)
class Verdict:
    """What was found out about an intervention.

    Attributes:
        outcome: "helped" or "hurt" where the interval is above or below 0; "no evidence" where 0 lies in it;
            "not measured" where no interval can be given.
        sentence: All of it in plain words.
        difference: Accuracy with the intervention - accuracy without it, in [-1, 1].
        interval: Of the difference, or None.
        level: Of the interval.
        treated: Accuracy with it.
        control: Accuracy without it.
        examples: How many were looked at; of a lottery, classes.
        groups: How many sources they come from.
        pairs: Of trainings, one with and one without it.
        noise: Standard deviation of the accuracy between trainings that differ in the draws alone; None with one pair.
        p_value: Of a lottery over classes.
        overall: The same on all examples, where this one is about a slice.
    """

    outcome: VerdictOutcome
    sentence: str
    difference: float | None = None
    interval: tuple[float, float] | None = None
    level: float = 0.95
    treated: float | None = None
    control: float | None = None
    examples: int = 0
    groups: int = 0
    pairs: int = 0
    noise: float | None = None
    p_value: float | None = None
    overall: Verdict | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"interval": None if self.interval is None else list(self.interval)}


def not_measured(reason: str, **known: Any) -> Verdict:
    """Say why there is no verdict.

    >>> not_measured("no class has a pattern").sentence
    'Not measured: no class has a pattern.'
    """
    return Verdict("not measured", f"Not measured: {reason}.", **known)


def paired_verdict(
    with_correct: Any,
    without_correct: Any,
    *,
    groups: Any = None,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
    what: str = "examples",
) -> Verdict:
    """Compare trainings with an intervention and without it, on the same examples.

    The trainings of one arm differ only in the seed of their draws. The difference of mean accuracies D has two sources
    of error, and the interval covers both: its limits are quantiles of

        D + (difference of whole groups drawn with replacement - D) + s * sqrt(2 / R) * t

    where s is the pooled standard deviation of an arm's R accuracies and t has Student's distribution with 2 R - 2
    degrees of freedom. The first term says what other examples would give, the second what other draws would (alone it
    is Student's test of two samples; that trainings with one seed form a pair is not used, because draws that differ
    in anything soon have nothing in common). Both contain the noise of single predictions, so intervals are a little
    wide. With one pair the noise of training cannot be told from an effect, however many examples there are: "not
    measured".

    Args:
        with_correct: (R, n) or (n,) bool, whether each example is right in each training with the intervention.
        without_correct: The same without it, as many trainings.
        groups: (n,) sources of the examples, which are resampled as a whole. None: each is its own.
        level: Of the interval, in (0, 1).
        resamples: Draws of the bootstrap.
        seed: Of them; no global generator is used.
        what: The examples in words, for the sentence.

    Raises:
        DataError: Shapes that do not match.
        ConfigurationError: ``level`` or ``resamples`` outside its range.

    >>> rng = np.random.default_rng(0)
    >>> without, with_it = rng.random((3, 200)) < 0.5, rng.random((3, 200)) < 0.8
    >>> found = paired_verdict(with_it, without)
    >>> found.outcome, found.pairs, round(found.difference, 2)
    ('helped', 3, 0.34)
    >>> paired_verdict(without, without).outcome, paired_verdict(with_it[0], without[0]).outcome
    ('no evidence', 'not measured')
    """
    _check_options("paired_verdict", level, resamples)
    treated, control = _trainings(with_correct, "with_correct"), _trainings(without_correct, "without_correct")
    if treated.shape != control.shape:
        raise DataError(f"with_correct has shape {treated.shape}, without_correct {control.shape}")
    pairs, size = treated.shape
    names = np.arange(size) if groups is None else as_vector(groups, "groups", size)
    _, member = np.unique(names, return_inverse=True)
    known = {"level": level, "examples": size, "groups": int(member.max(initial=-1)) + 1, "pairs": pairs}
    if size:
        known |= {
            "difference": float(treated.mean() - control.mean()),
            "treated": float(treated.mean()),
            "control": float(control.mean()),
        }
    if (reason := _too_few(size, known["groups"], what)) is not None:
        return not_measured(reason, **known)
    if pairs == 1 and not np.array_equal(treated, control):
        return not_measured(
            f"of {size} {what} {treated.mean():.3f} are right with it, {control.mean():.3f} without, but the noise of"
            " one pair of trainings cannot be told from an effect",
            **known,
        )
    rng = np.random.default_rng(seed)
    spread = _resampled(treated.mean(axis=0) - control.mean(axis=0), member, resamples, rng)
    if pairs > 1:
        accuracies = np.stack([treated.mean(axis=1), control.mean(axis=1)])
        known["noise"] = noise = float(np.sqrt(accuracies.var(axis=1, ddof=1).mean()))
        spread += noise * math.sqrt(2 / pairs) * rng.standard_t(2 * pairs - 2, size=resamples)
    return _decided(Verdict("no evidence", "", **known), spread, what)


def should_roll_back(
    before_correct: Any,
    after_correct: Any,
    *,
    groups: Any = None,
    margin: float = 0.02,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Verdict:
    """Say whether accuracy fell since an intervention began: a reason to undo it, if no proof that it is to blame.

    Before and after are two moments of one training, and accuracy moves from epoch to epoch without any intervention.
    So what counts as "hurt" is a fall that is larger than ``margin`` for certain: the whole interval of the difference,
    bootstrapped by group, lies below -margin. A gain proves nothing either, since trainings improve by themselves: the
    outcome is "hurt" or "no evidence", never "helped".

    Args:
        before_correct: (n,) bool, whether each example of the decision part was right before it began.
        after_correct: (n,) bool, the same examples now.
        groups: (n,) sources of the examples.
        margin: Fall of accuracy that is let pass, in [0, 1).
        level: Of the interval, in (0, 1).
        resamples: Draws of the bootstrap.
        seed: Of them.

    Raises:
        DataError: Shapes that do not match.
        ConfigurationError: An option outside its range.

    >>> before = np.arange(400) % 10 > 0
    >>> should_roll_back(before, np.arange(400) % 10 > 2).outcome, should_roll_back(before, before).outcome
    ('hurt', 'no evidence')
    """
    _check_options("should_roll_back", level, resamples)
    if not 0 <= margin < 1:
        raise ConfigurationError(f"should_roll_back: margin must be in [0, 1); got {margin!r}.")
    before = as_array(before_correct)
    before = as_mask(before, "before_correct", len(before))
    after = as_mask(after_correct, "after_correct", len(before))
    names = np.arange(len(before)) if groups is None else as_vector(groups, "groups", len(before))
    _, member = np.unique(names, return_inverse=True)
    known: dict[str, Any] = {"level": level, "examples": len(before), "groups": int(member.max(initial=-1)) + 1}
    if (reason := _too_few(len(before), known["groups"], "examples of the decision part")) is not None:
        return not_measured(reason, **known)
    change = after.astype(np.float64) - before
    spread = _resampled(change, member, resamples, np.random.default_rng(seed))
    low, high = _limits(float(change.mean()), spread, level)
    outcome: VerdictOutcome = "hurt" if high < -margin else "no evidence"
    told = f"surely more than {margin:.3f}" if outcome == "hurt" else f"not surely more than {margin:.3f}"
    return Verdict(
        outcome,
        f"Of {len(before)} examples of the decision part {before.mean():.3f} were right before it began, "
        f"{after.mean():.3f} are now: change {change.mean():+.3f}, {level:.0%} interval {low:+.3f} to {high:+.3f}, a"
        f" fall of {told}.",
        difference=float(change.mean()),
        interval=(low, high),
        treated=float(after.mean()),
        control=float(before.mean()),
        **known,
    )


def assign_classes(names: Sequence[str], *, seed: int = 0) -> NDArray[np.bool_]:
    """Draw by lot which half of the flagged classes is treated: (K,) bool.

    The lot of a class hangs on its name and the seed alone, so their order has no influence. Of an odd number the
    smaller half is treated.

    Raises:
        DataError: Two classes of one name.

    >>> assign_classes(["cat", "dog", "eel", "fox"], seed=1).tolist()
    [True, True, False, False]
    """
    if len(set(names)) < len(names):
        raise DataError("assign_classes: class names must differ")
    digests = [blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names]
    order = np.argsort(stable_hash(np.array([int.from_bytes(d, "little", signed=True) for d in digests]), seed))
    treated = np.zeros(len(names), dtype=np.bool_)
    treated[order[: len(names) // 2]] = True
    return treated


def randomized_verdict(
    before: Any,
    after: Any,
    treated: Any,
    *,
    level: float = 0.95,
    permutations: int = 9999,
    seed: int = 0,
) -> Verdict:
    """Compare classes that were treated by lot with those that were not: the difference in differences.

    One training is enough, because the lot, not the training, is what is random: under the hypothesis that the
    intervention does nothing to any class, every assignment of as many classes gives a difference that might as well
    have been. All of them are gone through where there are at most 262,144 (20 classes: 184,756), else a sample. The
    interval holds the constant effects that the test does not reject (Rosenbaum, Observational Studies, 2002, section
    2.6.2); each assignment gives the effect at which it would draw level, and the limits are order statistics of those.

    What a treated class learns may help or harm its neighbours, so this is the effect of treating a class *beside*
    untreated ones.

    Args:
        before: (K,) accuracy of each class on its slice before the intervention began; NaN where it is not known.
        after: (K,) the same now.
        treated: (K,) bool, from :func:`assign_classes`.
        level: Of the interval, in (0, 1).
        permutations: Size of the sample of assignments.
        seed: Of the sample.

    Raises:
        DataError: Shapes that do not match.
        ConfigurationError: An option outside its range.

    >>> treated = assign_classes([f"class {k}" for k in range(24)])
    >>> before = np.linspace(0.2, 0.6, 24)
    >>> found = randomized_verdict(before, before + 0.1 + 0.2 * treated, treated)
    >>> found.outcome, round(found.difference, 3), found.examples
    ('helped', 0.2, 24)
    """
    _check_options("randomized_verdict", level, permutations)
    start, end = (np.asarray(as_array(values), dtype=np.float64) for values in (before, after))
    lot = as_mask(treated, "treated", len(start))
    if start.shape != lot.shape or end.shape != lot.shape:
        raise DataError(f"before has shape {start.shape}, after {end.shape}, treated {lot.shape}")
    change = end - start
    change, lot = change[np.isfinite(change)], lot[np.isfinite(change)]
    size, chosen = len(lot), int(lot.sum())
    if size < MIN_CLASSES or not 0 < chosen < size:
        return not_measured(
            f"{chosen} classes treated by lot and {size - chosen} not; it takes {MIN_CLASSES}, with some of both",
            examples=size,
            groups=size,
            level=level,
        )
    difference = float(change[lot].mean() - change[~lot].mean())
    null, overlap = _assignments(change, lot, permutations, np.random.default_rng(seed))
    count, other = len(null), overlap < 1 - _ROUNDING
    p_value = float((np.abs(null) >= abs(difference) - _ROUNDING).sum() / count)
    # less a constant effect e, an assignment gives null - e * overlap and the real one difference - e: level at
    level_at = np.sort((difference - null[other]) / (1 - overlap[other]))
    beyond = int((1 - level) / 2 * count) - (count - len(level_at))  # the real assignment always counts
    if beyond < 0:
        return not_measured(f"{count} assignments are too few for a level of {level:.0%}", examples=size, level=level)
    low, high = float(level_at[beyond]), float(level_at[-1 - beyond])
    outcome: VerdictOutcome = "helped" if low > 0 else "hurt" if high < 0 else "no evidence"
    return Verdict(
        outcome,
        f"{outcome.capitalize()}: accuracy on the slices of {chosen} classes treated by lot changed by"
        f" {change[lot].mean():+.3f}, on those of {size - chosen} others by {change[~lot].mean():+.3f} (difference"
        f" {difference:+.3f}, {level:.0%} interval {low:+.3f} to {high:+.3f}, p = {p_value:.2g}).",
        difference=difference,
        interval=(low, high),
        level=level,
        treated=float(change[lot].mean()),
        control=float(change[~lot].mean()),
        examples=size,
        groups=size,
        p_value=p_value,
    )


def _assignments(
    change: NDArray[np.float64], lot: NDArray[np.bool_], sample: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P,) difference of the changes under each assignment, the real one among them; (P,) that of the lot itself."""
    size, chosen = len(lot), int(lot.sum())
    scale = 1 / chosen + 1 / (size - chosen)

    def differences(rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        # mean of the chosen - mean of the others, from the sum over the chosen: (P, chosen) -> (P,)
        return (
            scale * change[rows].sum(axis=1) - change.sum() / (size - chosen),
            scale * lot[rows].sum(axis=1) - chosen / (size - chosen),
        )

    if math.comb(size, chosen) <= _EXACT:
        every = np.fromiter(itertools.chain.from_iterable(itertools.combinations(range(size), chosen)), dtype=np.int64)
        return differences(every.reshape(-1, chosen))
    block = max(1, _CELLS_AT_ONCE // size)
    found = [differences(np.flatnonzero(lot)[None])]
    for start in range(0, sample, block):
        drawn = rng.random((min(block, sample - start), size)).argpartition(chosen - 1, axis=1)[:, :chosen]
        found.append(differences(drawn))
    return np.concatenate([null for null, _ in found]), np.concatenate([overlap for _, overlap in found])


def _resampled(
    difference: NDArray[np.float64], member: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(B,) mean difference of whole groups drawn with replacement, less the mean difference.

    Scaled by sqrt(G / (G - 1)): a bootstrap of G groups has the variance of a mean with divisor G.
    """
    sizes = np.bincount(member)
    sums = np.bincount(member, weights=difference)
    found = np.empty(resamples)
    count = len(sizes)
    block = max(1, _CELLS_AT_ONCE // count)
    for start in range(0, resamples, block):
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(block, resamples - start))
        found[start : start + block] = (times @ sums) / (times @ sizes)
    return np.asarray((found - difference.mean()) * math.sqrt(count / (count - 1)))


def _limits(difference: float, spread: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(difference + spread, [(1 - level) / 2, (1 + level) / 2])
    return float(np.clip(low, -1, 1)), float(np.clip(high, -1, 1))


def _decided(found: Verdict, spread: NDArray[np.float64], what: str) -> Verdict:
    assert found.difference is not None
    low, high = _limits(found.difference, spread, found.level)
    outcome: VerdictOutcome = "helped" if low > 0 else "hurt" if high < 0 else "no evidence"
    return replace(
        found,
        outcome=outcome,
        interval=(low, high),
        sentence=f"{outcome.capitalize()}: of {found.examples} {what} {found.treated:.3f} are right with it,"
        f" {found.control:.3f} without (difference {found.difference:+.3f}, {found.level:.0%} interval {low:+.3f} to"
        f" {high:+.3f}, {found.pairs} {'pair' if found.pairs == 1 else 'pairs'} of trainings).",
    )


def _too_few(size: int, groups: int, what: str) -> str | None:
    if size < MIN_EXAMPLES:
        return f"{size} {what} are too few, it takes {MIN_EXAMPLES}"
    if groups < MIN_EXAMPLES:
        return f"the {size} {what} come from {groups} groups only, it takes {MIN_EXAMPLES}"
    return None


def _trainings(correct: Any, name: str) -> NDArray[np.float64]:
    """(R, n) or (n,) bool -> (R, n) float64."""
    array = as_array(correct)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not len(array):
        raise DataError(f"{name} must have shape (R, n) or (n,), got {array.shape}")
    return as_mask(array.reshape(-1), name, array.size).reshape(array.shape).astype(np.float64)


def _check_options(owner: str, level: float, draws: int) -> None:
    if not 0 < level < 1:
        raise ConfigurationError(f"{owner}: level must be in (0, 1); got {level!r}.")
    if draws < 100:
        raise ConfigurationError(f"{owner}: it takes at least 100 resamples or permutations; got {draws!r}.")
