"""An assertion about pinned slices, for pytest."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_failures.data.pin_check import PinCheck


def assert_pins_hold(checks: Iterable[PinCheck]) -> None:
    """Raise an AssertionError that says which pinned slices do not hold.

    Args:
        checks: The result of :func:`~lightning_failures.regression.check_pins`, ``last_report.pins`` of a callback
            with ``AdvancedOptions(pins=...)``, or ``[metric.check()]``.

    Raises:
        AssertionError: A slice has reopened, is still open, or could not be checked; or there is no check at all.

    >>> assert_pins_hold([PinCheck("cat 1", "cat", "holds")])
    >>> assert_pins_hold([PinCheck("cat 1", "cat", "not checked", note="no images.")])
    Traceback (most recent call last):
    ...
    AssertionError: 1 of 1 pinned slices do not hold:
      cat 1 could not be checked: no images.
    """
    checks = list(checks)
    if not checks:
        raise AssertionError("No pinned slice was checked.")
    failing = [check.sentence for check in checks if not check.holds]
    if failing:
        lines = "\n  ".join(failing)
        raise AssertionError(f"{len(failing)} of {len(checks)} pinned slices do not hold:\n  {lines}")
