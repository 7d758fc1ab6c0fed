"""Verdicts on interventions: a word, an interval and a sentence from outcomes with and without an intervention.

A training that improves proves nothing, because it might have improved without the intervention. Evidence comes from
trainings that differ in the intervention alone, or from classes whose treatment was randomized.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array, as_mask, as_vector
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.moved import old_names
from lightning_failures.core.types import BoolArray
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.wobble import LAST_BEFORE, LAST_SINCE, measure_fall

VerdictOutcome = Literal["helped", "no evidence", "hurt", "not measured"]

MIN_EXAMPLES = 10
"""Minimum number of examples, and of groups of examples, for a verdict."""

MIN_CLASSES = 20
"""Minimum number of classes for a randomized verdict."""

_CELLS_AT_ONCE = 1 << 22
_ROUNDING = 1e-12
_EXACT = 1 << 18  # up to this number, all assignments are enumerated; C(20, 10) are fewer


@dataclass(frozen=True)
class Verdict:
    """A verdict on the effect of an intervention.

    Attributes:
        outcome: "helped" or "hurt" if the interval is above or below 0; "no evidence" if it contains 0; "not measured"
            if there is no interval.
        sentence: The verdict as a sentence.
        difference: Accuracy with the intervention - accuracy without it, in [-1, 1].
        interval: Interval of the difference, or None.
        level: Level of the interval.
        treated: Accuracy with the intervention.
        control: Accuracy without the intervention.
        examples: Number of examples; in a randomized verdict, of classes.
        groups: Number of sources of the examples.
        pairs: Number of pairs of trainings, one with and one without the intervention.
        noise: Standard deviation of the accuracy between trainings that differ in the draws alone; None with one pair.
        p_value: p-value of a randomized verdict.
        overall: The verdict on all examples, if this one is on a slice.
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
        """Return plain values."""
        return asdict(self) | {"interval": None if self.interval is None else list(self.interval)}


def not_measured(reason: str, **known: Any) -> Verdict:
    """Return the verdict "not measured" with its reason.

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
    """Compare trainings with an intervention and without it on the same examples.

    The trainings of one arm differ only in the seed of their draws. The difference of mean accuracies D has two sources
    of error, and the interval covers both: its limits are quantiles of

        D + (difference of whole groups drawn with replacement - D) + s * sqrt(2 / R) * t

    where s is the pooled standard deviation of an arm's R accuracies and t has Student's distribution with 2 R - 2
    degrees of freedom. The first term is the error from the choice of examples, the second that from the draws (alone
    it is Student's test of two samples; that trainings with one seed form a pair is not used, because draws that differ
    in anything soon have nothing in common). Both contain the noise of single predictions, so intervals are a little
    wide. With one pair the noise of training and an effect cannot be distinguished, whatever the number of examples:
    "not measured".

    Args:
        with_correct: (R, n) or (n,) bool, whether each example is right in each training with the intervention.
        without_correct: The same for the same number of trainings without it.
        groups: (n,) sources of the examples, which are resampled as a whole. None: each example is its own source.
        level: Level of the interval, in (0, 1).
        resamples: Number of draws of the bootstrap.
        seed: Seed of the bootstrap; no global generator is used.
        what: Name of the examples in the sentence.

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
    treated = _trainings(with_correct, "with_correct")
    control = _trainings(without_correct, "without_correct")
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
            f"of {size} {what} {treated.mean():.3f} are right with it, {control.mean():.3f} without, but one pair"
            " of trainings cannot distinguish noise from an effect",
            **known,
        )

    # error from the choice of examples, then that from the draws
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
    """Return whether accuracy fell since an intervention began: a reason to undo it, but no proof of its cause.

    Before and after are two moments of one training, and accuracy moves from epoch to epoch without any intervention.
    So "hurt" means a fall that is significantly larger than ``margin``: the whole interval of the difference,
    bootstrapped by group, lies below -margin. A gain proves nothing either, since trainings improve by themselves: the
    outcome is "hurt" or "no evidence", never "helped".

    Args:
        before_correct: (n,) bool, whether each example of the decision part was right before the intervention began.
        after_correct: (n,) bool, the same examples now.
        groups: (n,) sources of the examples.
        margin: Fall of accuracy that is tolerated, in [0, 1).
        level: Level of the interval, in (0, 1).
        resamples: Number of draws of the bootstrap.
        seed: Seed of the bootstrap.

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
    significance = "significantly" if outcome == "hurt" else "not significantly"
    return Verdict(
        outcome,
        f"Of {len(before)} examples of the decision part {before.mean():.3f} were right before the intervention began,"
        f" {after.mean():.3f} are now: change {change.mean():+.3f}, {level:.0%} interval {low:+.3f} to {high:+.3f}, a"
        f" fall of {significance} more than {margin:.3f}.",
        difference=float(change.mean()),
        interval=(low, high),
        treated=float(after.mean()),
        control=float(before.mean()),
        **known,
    )


def fall_verdict(
    before: Any,
    since: Any,
    *,
    looks: int | None = None,
    groups: Any = None,
    margin: float = 0.02,
    resamples: int = 4000,
    seed: int = 0,
) -> Verdict:
    """Return whether accuracy fell since an intervention began by more than its own wobble: a reason to undo it.

    Three conditions must hold: the fall is larger than the wobble between validations explains, with all looks so far
    taken into account (:mod:`lightning_failures.interventions.wobble`); it is larger than ``margin``; and it holds for
    other examples of the same kind (one-sided 95 % bootstrap of the mean change, by group). It is no proof of a cause.
    The outcome is "hurt", "no evidence" or "not measured", never "helped": trainings improve by themselves.

    Args:
        before: (B, n) whether each example of the decision part was right in each validation before the intervention
            began, the oldest first: 1, 0, or NaN for an example that a validation did not grade.
        since: (k, n) the same in the validations since.
        looks: Number of validations since, if ``since`` holds only the last ones.
        groups: (n,) sources of the examples.
        margin: Fall of accuracy that is tolerated, in [0, 1).
        resamples: Number of draws of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        DataError: Shapes that do not match.
        ConfigurationError: An option outside its range.

    >>> rng = np.random.default_rng(0)
    >>> before, since, worse = (rng.random((4, 400)) < rate for rate in (0.9, 0.9, 0.75))
    >>> fall_verdict(before, since).outcome, fall_verdict(before, worse).outcome
    ('no evidence', 'hurt')
    """
    _check_options("fall_verdict", 0.9, resamples)
    if not 0 <= margin < 1:
        raise ConfigurationError(f"fall_verdict: margin must be in [0, 1); got {margin!r}.")
    earlier, later = (np.asarray(as_array(values), dtype=np.float64) for values in (before, since))
    if earlier.ndim != 2 or later.ndim != 2 or earlier.shape[1] != later.shape[1]:
        raise DataError(f"before must have shape (B, n) and since (k, n), got {earlier.shape} and {later.shape}")
    # examples that count on both sides, and validations that graded some of them
    change, is_known = _mean_change(earlier, later)
    earlier, later = (
        looked[:, is_known][~np.isnan(looked[:, is_known]).all(axis=1)] if is_known.any() else looked[:0, :0]
        for looked in (earlier, later)
    )
    names = np.arange(len(is_known)) if groups is None else as_vector(groups, "groups", len(is_known))
    _, member = np.unique(names[is_known], return_inverse=True)
    known: dict[str, Any] = {"examples": int(is_known.sum()), "groups": int(member.max(initial=-1)) + 1}
    if (reason := _too_few(known["examples"], known["groups"], "examples of the decision part")) is not None:
        return not_measured(reason, **known)

    fall = measure_fall(np.nanmean(earlier, axis=1), np.nanmean(later, axis=1), looks=looks)
    spread = _resampled(change[is_known], member, resamples, np.random.default_rng(seed))
    low, high = _limits(float(change[is_known].mean()), spread, 0.9)
    difference = fall.since - fall.before
    is_fall = fall.is_significant and high < 0 and difference < -margin
    return Verdict(
        "hurt" if is_fall else "no evidence",
        f"Of {known['examples']} examples of the decision part {fall.before:.3f} were right before the intervention"
        f" began, {fall.since:.3f} are now: change {difference:+.3f}, {'more' if is_fall else 'not clearly more'} than"
        f" the wobble of {fall.wobble:.3f} between validations explains (p = {fall.p_value:.2g}, allowed"
        f" {fall.allowed:.2g} at look {fall.looks}).",
        difference=difference,
        interval=(low, high),
        level=0.9,
        treated=fall.since,
        control=fall.before,
        noise=fall.wobble,
        p_value=fall.p_value,
        **known,
    )


def _mean_change(before: NDArray[np.float64], since: NDArray[np.float64]) -> tuple[NDArray[np.float64], BoolArray]:
    """Return the change of each example (n,) between the levels, and which examples (n,) are known in both."""
    means = []
    for looked in (before[-LAST_BEFORE:], since[-LAST_SINCE:]):
        count = (~np.isnan(looked)).sum(axis=0)
        means.append(np.where(count > 0, np.nansum(looked, axis=0) / np.maximum(count, 1), np.nan))
    change = means[1] - means[0]
    return change, ~np.isnan(change)


def assign_classes(names: Sequence[str], *, seed: int = 0) -> NDArray[np.bool_]:
    """Choose at random which half of the flagged classes is treated, (K,) bool.

    The choice depends on the names and the seed alone, not on the order of the classes. Of an odd number the smaller
    half is treated.

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
    """Compare randomly treated classes with the untreated ones: the difference in differences.

    One training is enough, because the assignment, not the training, is random: under the hypothesis that the
    intervention has no effect on any class, every assignment of the same number of classes is equally likely. All
    assignments are enumerated if there are at most 262,144 (20 classes: 184,756), else a sample. The interval contains
    the constant effects that the test does not reject (Rosenbaum, Observational Studies, 2002, section 2.6.2); each
    assignment gives the effect at which its difference equals the real one, and the limits are order statistics of
    those effects.

    What a treated class learns may help or harm its neighbours, so this is the effect of treating a class *next to*
    untreated ones.

    Args:
        before: (K,) accuracy of each class on its slice before the intervention began; NaN if unknown.
        after: (K,) the same now.
        treated: (K,) bool, from :func:`assign_classes`.
        level: Level of the interval, in (0, 1).
        permutations: Number of assignments in the sample.
        seed: Seed of the sample.

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
    start = np.asarray(as_array(before), dtype=np.float64)
    end = np.asarray(as_array(after), dtype=np.float64)
    lot = as_mask(treated, "treated", len(start))
    if start.shape != lot.shape or end.shape != lot.shape:
        raise DataError(f"before has shape {start.shape}, after {end.shape}, treated {lot.shape}")
    change = end - start
    is_known = np.isfinite(change)
    change, lot = change[is_known], lot[is_known]
    size, chosen = len(lot), int(lot.sum())
    if size < MIN_CLASSES or not 0 < chosen < size:
        return not_measured(
            f"{chosen} classes were treated at random and {size - chosen} not; a randomized verdict takes"
            f" {MIN_CLASSES}, some of both kinds",
            examples=size,
            groups=size,
            level=level,
        )
    difference = float(change[lot].mean() - change[~lot].mean())
    null, overlap = _assignments(change, lot, permutations, np.random.default_rng(seed))
    count, other = len(null), overlap < 1 - _ROUNDING
    p_value = float((np.abs(null) >= abs(difference) - _ROUNDING).sum() / count)
    # Without a constant effect e, an assignment gives null - e * overlap, and the real one difference - e. They are
    # equal at the effect:
    level_at = np.sort((difference - null[other]) / (1 - overlap[other]))
    beyond = int((1 - level) / 2 * count) - (count - len(level_at))  # the real assignment is always counted
    if beyond < 0:
        return not_measured(f"{count} assignments are too few for a level of {level:.0%}", examples=size, level=level)
    low, high = float(level_at[beyond]), float(level_at[-1 - beyond])
    outcome: VerdictOutcome = "helped" if low > 0 else "hurt" if high < 0 else "no evidence"
    return Verdict(
        outcome,
        f"{outcome.capitalize()}: accuracy on the slices of {chosen} randomly treated classes changed by"
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
    """Return the difference of changes under each assignment, the real one included, and its overlap with the real one.

    Returns:
        (P,) differences of ``change``; (P,) the same differences of the indicator ``lot``, 1 for the real assignment.
    """
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
    """Return the mean difference of whole groups drawn with replacement, (B,), less the mean difference.

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
        return f"{size} {what} are too few; it takes {MIN_EXAMPLES}"
    if groups < MIN_EXAMPLES:
        return f"the {size} {what} come from {groups} groups only; it takes {MIN_EXAMPLES}"
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
        raise ConfigurationError(f"{owner}: resamples or permutations must be at least 100; got {draws!r}.")


if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)
