"""Pinned slices as regression tests: a pattern that was fixed must not come back with the next model.

Files, each importing only from those above it::

    pin        A pinned slice: its images, its direction or rule, its error rate, as one small file
    check      The test of pinned slices on the grades of another model
    metric     The error rate of a pinned slice as a torchmetrics metric
    assertion  An assertion about pinned slices, for pytest
"""

from lightning_failures.regression.assertion import assert_pins_hold
from lightning_failures.regression.check import check_pins
from lightning_failures.regression.metric import PinnedSliceErrorRate
from lightning_failures.regression.pin import Pin, PinnedDirection, load_pins

__all__ = ["Pin", "PinnedDirection", "PinnedSliceErrorRate", "assert_pins_hold", "check_pins", "load_pins"]
