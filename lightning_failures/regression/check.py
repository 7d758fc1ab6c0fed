"""The test of pinned slices on the grades of another model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_array, as_rows
from lightning_failures.core.text import clean
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.digests import UNKNOWN_DIGEST
from lightning_failures.data.grades import Grades, checked_grades
from lightning_failures.data.pin_check import PinCheck
from lightning_failures.errors import DataError, did_you_mean
from lightning_failures.regression.pin import Pin, load_pins
from lightning_failures.stats.intervals import holm_adjusted
from lightning_failures.stats.rates import exact_p_values, rate_of

LEVEL = 0.05
"""Probability that any pin fails a check although none of their slices has reopened."""

MIN_IMAGES = 5
"""Number of images that a slice needs for a check."""


@dataclass(frozen=True, eq=False)
class ClassImages:
    """The n graded images of the class of a pin, each once.

    Attributes:
        digests: (n,) int64, -1 for an unknown image.
        failed: (n,) bool.
        inside: (n,) bool, in the slice by the direction or the rule of the pin.
        sources: (n,) sources of the images; None: each is its own.
    """

    digests: IntArray
    failed: BoolArray
    inside: BoolArray
    sources: IntArray | None = None

    @classmethod
    def distinct(
        cls, digests: IntArray, failed: BoolArray, inside: BoolArray, sources: IntArray | None = None
    ) -> ClassImages:
        """Return the first of several copies of each image; images that are unknown are all kept."""
        keep = digests == UNKNOWN_DIGEST
        keep[np.unique(digests, return_index=True)[1]] = True
        return cls(digests[keep], failed[keep], inside[keep], None if sources is None else sources[keep])


def check_pins(
    pins: str | Path | Pin | Iterable[str | Path | Pin],
    grades: Grades,
    *,
    embeddings: Any = None,
    features: Any = None,
    level: float = LEVEL,
) -> tuple[PinCheck, ...]:
    """Check pinned slices on the grades of another model.

    The images of a slice are found again by their digests, whatever their ids. With embeddings, images that the class
    did not have when the slice was pinned belong to it if the direction (or the rule) of the pin says so.

    *The test.* A slice reopens if two one-sided tests both reject: that it fails no more often now than the level that
    was stored with the pin, and that it fails no more often than the other images of its class do now. The second one
    tells a pattern from a model that got worse altogether. Both are Fisher's exact test, so the level counts with the
    number of images that it was measured on; images of one source count as fewer (their effective number). The p-value
    is the larger of the two (an intersection-union test), and p-values are corrected by Holm's method: if no slice
    has reopened, the probability that any check fails is at most ``level``. Usually it is far less, because the images
    of both looks are mostly the same, which Fisher's test does not use.

    *The level* of a slice that was fixed when it was pinned is its own error rate then; of one that failed
    significantly more often than the rest of its class it is the error rate of the rest. Its checks fail until it is
    fixed.

    Args:
        pins: Pins, files or folders of pins.
        grades: N rows, with digests.
        embeddings: (N, D) by the encoder of the pins' directions, rows that are not finite where unknown; None: only
            the pinned images are checked.
        features: (N, F) by the encoder of the pins' rules, in the same form.
        level: Probability in (0, 1), see above.

    Returns:
        One record for each pin. A slice of fewer than 5 images, or whose class does not exist, is "not checked".

    Raises:
        DataError: A pin cannot be read, or grades, embeddings or features have another form.

    Reference:
        Berger, Multiparameter hypothesis testing and acceptance sampling, 1982 (intersection-union tests).
    """
    grades = checked_grades(grades)
    values = {
        name: None if rows is None else as_rows(rows, name, finite=False)
        for name, rows in (("embeddings", embeddings), ("features", features))
    }
    for name, rows in values.items():
        if rows is not None and len(rows) != len(grades):
            raise DataError(f"{name} must have {len(grades)} rows like grades, got {len(rows)}.")
    sources = {"encoder": values["embeddings"], "robust_encoder": values["features"]}
    return judge([measure(pin, grades, sources[pin.source]) for pin in _loaded(pins)], level=level)


def measure(pin: Pin, grades: Grades, values: NDArray[Any] | None) -> PinCheck:
    """Return the numbers of one slice, without a verdict that depends on the other pins.

    Args:
        pin: The pin.
        grades: N rows.
        values: (N, D) embeddings or features by the encoder of the pin, or None.
    """
    k = _class_index(pin, grades.class_names)
    if k is None:
        known = ", ".join(clean(name, 30) for name in grades.class_names[:5])
        return _not_checked(
            pin,
            f"the class {clean(pin.class_name, 60)!r} does not exist any more (classes: {known}"
            f"{', ...' if len(grades.class_names) > 5 else ''}).{did_you_mean(pin.class_name, grades.class_names)}"
            " Delete the pin, or pin the slice again under the new name.",
        )
    if grades.digests is None:
        return _not_checked(pin, "the images are unknown, so that none can be found again. Give grades with digests.")
    mine, digests = as_array(grades.labels) == k, as_array(grades.digests)
    inside = np.zeros(int(mine.sum()), dtype=np.bool_) if values is None else pin.contains(values[mine])
    sources = None if grades.groups is None else as_array(grades.groups)[mine]
    images = ClassImages.distinct(digests[mine], as_array(grades.failed)[mine], inside, sources)
    return measure_images(pin, images, elsewhere=digests[~mine])


def measure_images(pin: Pin, images: ClassImages, elsewhere: IntArray) -> PinCheck:
    """Return the numbers of one slice; ``elsewhere`` (m,) int64 are the digests of images with other labels."""
    pinned = np.isin(images.digests, as_array(pin.digests))
    new = images.inside & ~pinned & ~np.isin(images.digests, as_array(pin.known))
    members = pinned | new
    gone = np.setdiff1d(as_array(pin.digests), images.digests)
    found = PinCheck(
        name=pin.name,
        class_name=pin.class_name,
        status="holds",
        examples=int(members.sum()),
        failures=int((members & images.failed).sum()),
        joined=int(pinned.sum()),
        new=int(new.sum()),
        gone=len(gone),
        relabelled=int(np.isin(gone, elsewhere).sum()),
        level=pin.level.rate,
        level_of=pin.level_of,
        caption=pin.caption,
    )
    if found.examples < MIN_IMAGES:
        only = f"only {found.examples} of its images are" if found.examples else "none of its images is"
        return replace(
            found,
            status="not checked",
            note=f"{only} in these data ({len(pin.digests)} were pinned, {found.gone} are gone), {MIN_IMAGES} are"
            " needed. Check the split that the slice was pinned on, with the same images, or pin the slice again.",
        )
    now = rate_of(images.failed, members, images.sources)
    pairs = [(now, pin.level)]
    rest = None
    if not members.all():
        rest = rate_of(images.failed, ~members, images.sources)
        pairs.append((now, rest))
    return replace(
        found,
        error_rate=now.rate,
        interval=now.interval,
        rest_error_rate=None if rest is None else rest.rate,
        p_value=max(exact_p_values(pairs)),
    )


def judge(checks: Sequence[PinCheck], *, level: float = LEVEL) -> tuple[PinCheck, ...]:
    """Return the checks of several pins with their verdicts, corrected for the number of pins."""
    tested = [check for check in checks if check.p_value is not None]
    adjusted = iter(holm_adjusted([check.p_value for check in tested]).tolist())
    judged = []
    for check in checks:
        if check.p_value is not None:
            p = next(adjusted)
            fails = "reopened" if check.level_of == "slice" else "open"
            check = replace(check, adjusted_p_value=p, status=fails if p <= level else "holds")
        judged.append(check)
    return tuple(judged)


def _loaded(pins: str | Path | Pin | Iterable[str | Path | Pin]) -> list[Pin]:
    given = [pins] if isinstance(pins, str | Path | Pin) else list(pins)
    return [pin for one in given for pin in ((one,) if isinstance(one, Pin) else load_pins(one))]


def _class_index(pin: Pin, names: Sequence[str]) -> int | None:
    return list(names).index(pin.class_name) if pin.class_name in names else None


def _not_checked(pin: Pin, note: str) -> PinCheck:
    level, of = pin.level.rate, pin.level_of
    return PinCheck(pin.name, pin.class_name, "not checked", level=level, level_of=of, caption=pin.caption, note=note)
