"""Counterfactual checks: does an image that is changed only in the hypothesis change the answer of the model?

A caption or a feature comes from correlation: flagged images have it in common. Here it is changed alone. Images are
rendered from two captions with equal seeds, or the region of a feature is pasted onto other images, and the answers are
compared in pairs with those to a control.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from lightning_failures.core.arrays import as_mask
from lightning_failures.core.types import BoolArray
from lightning_failures.data.records import CounterfactualReport
from lightning_failures.stats.intervals import paired_difference_interval

CONFIRMED, NOT_CONFIRMED, NOT_MEASURED = "confirmed", "not confirmed", "not measured"
RENDERED, PASTED = "rendered", "pasted"

MIN_PAIRS = 8
"""Fewest pairs of answers that a verdict rests on."""

SIDES = (0.25, 0.375, 0.5)
"""Sides of a region that is pasted, as shares of those of the image."""

HEAT_SHARE = 0.5
"""Share of the heat of a map that a region holds, unless the largest region holds less."""

Box = tuple[float, float, float, float]
"""A region of an image: top, left, bottom and right in [0, 1], shares of height and width."""


def rendered_gap(
    correct_hard: Any, correct_reference: Any, correct_easy: Any = None, *, generator: str | None = None
) -> CounterfactualReport:
    """Compare the error rates of images rendered from the hardest and from the easiest caption, paired by seed.

    The images should differ in nothing but the words. The easiest caption is the control, since it is as specific as
    the hardest: generators draw a class less well where a caption says little, as the reference caption does. Whether
    images show the class at all is not judged; one that does not counts as an error of the model.

    Args:
        correct_hard: (n,) bool, whether the model is right about the image of each seed by the hardest caption.
        correct_reference: (n,) bool, the same for the reference caption.
        correct_easy: (n,) bool, the same for the easiest caption; None: the reference caption is the control.
        generator: Name of the generator.

    Raises:
        DataError: The lengths differ, or the values are no booleans.

    >>> found = rendered_gap([False] * 9 + [True], [True] * 5 + [False] * 5, [True] * 10)
    >>> found.verdict, found.changed, found.control, found.reference, [round(end, 2) for end in found.interval]
    ('confirmed', 0.9, 0.0, 0.5, [0.49, 0.98])
    """
    hard, reference = _pairs(correct_hard, correct_reference, "rendered_gap")
    easy = reference if correct_easy is None else _pairs(correct_hard, correct_easy, "rendered_gap")[1]
    rate = 1 - float(reference.mean()) if len(reference) else None
    return _compared(~hard, ~easy, kind=RENDERED, reference=rate, generator=generator)


def pasted_flips(flipped: Any, flipped_by_control: Any, *, repairs: bool = False) -> CounterfactualReport:
    """Compare how often answers flip with the region of a feature and with a control patch, paired by image.

    Args:
        flipped: (n,) bool, whether the answer to each image flips when the region is pasted onto it.
        flipped_by_control: (n,) bool, the same for a patch of the same size, at the same place, of an ordinary image.
        repairs: Whether the images are failures, and a flip makes them right.

    Raises:
        DataError: The lengths differ, or the values are no booleans.

    >>> pasted_flips([True] * 8 + [False] * 2, [False] * 10).verdict
    'confirmed'
    >>> pasted_flips([True] * 4, [False] * 4).reason
    'only 4 pairs of images'
    """
    region, control = _pairs(flipped, flipped_by_control, "pasted_flips")
    return _compared(region, control, kind=PASTED, repairs=repairs)


def not_measured(kind: str, reason: str, **known: Any) -> CounterfactualReport:
    """Return the report of a check that could not be made.

    >>> not_measured(PASTED, "out of time").verdict
    'not measured'
    """
    return CounterfactualReport(kind, NOT_MEASURED, reason, **known)


def hottest_box(heat: Tensor) -> Box:
    """Return the smallest of three sizes of regions that holds half of the heat, where it holds most.

    Args:
        heat: (h, w), finite. Heat is what exceeds the median, so that a constant background has none.

    >>> import torch
    >>> heat = torch.zeros(8, 8)
    >>> heat[6:, :2] = 1
    >>> hottest_box(heat)
    (0.75, 0.0, 1.0, 0.25)
    """
    height, width = heat.shape
    above = (heat.double() - heat.double().median()).clamp(min=0)
    box = (0.0, 0.0, 1.0, 1.0)
    for side in SIDES:
        rows, columns = max(round(side * height), 1), max(round(side * width), 1)
        sums = F.avg_pool2d(above[None, None], (rows, columns), stride=1, divisor_override=1)[0, 0]
        top, left = divmod(int(sums.argmax()), sums.shape[1])
        box = (top / height, left / width, (top + rows) / height, (left + columns) / width)
        if float(sums.max()) >= HEAT_SHARE * float(above.sum()):
            break
    return box


def paste(target: Tensor, source: Tensor, box: Box) -> Tensor:
    """Return a copy of an image with a region replaced by the same region of another image.

    Args:
        target: (C, H, W) in [0, 1].
        source: (C, h, w) in [0, 1], resized to the target if it differs in size.
        box: The region.

    >>> import torch
    >>> paste(torch.zeros(1, 2, 2), torch.ones(1, 4, 4), (0.0, 0.5, 0.5, 1.0)).tolist()
    [[[0.0, 1.0], [0.0, 0.0]]]
    """
    channels, height, width = target.shape
    source = resized(source, (channels, height, width))
    top, left, bottom, right = box
    rows = slice(round(top * height), max(round(bottom * height), round(top * height) + 1))
    columns = slice(round(left * width), max(round(right * width), round(left * width) + 1))
    pasted = target.clone()
    pasted[:, rows, columns] = source[:, rows, columns]
    return pasted


def resized(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an image (C, H, W) in [0, 1] in another shape: gray by the mean of its channels, colour by repeating gray.

    >>> import torch
    >>> resized(torch.rand(3, 8, 8), (1, 4, 4)).shape
    torch.Size([1, 4, 4])
    """
    channels, height, width = shape
    if image.shape[0] != channels:
        image = image.mean(dim=0, keepdim=True).expand(channels, -1, -1)
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)


def _pairs(first: Any, second: Any, name: str) -> tuple[BoolArray, BoolArray]:
    n = len(first)
    return as_mask(first, f"{name}: the first values", n), as_mask(second, f"{name}: the second values", n)


def _compared(changed: BoolArray, control: BoolArray, *, kind: str, **known: Any) -> CounterfactualReport:
    """Return the report of n pairs of flags."""
    n = len(changed)
    if n < MIN_PAIRS:
        return not_measured(kind, f"only {n} pairs of images", images=n, **known)
    both, only_changed = int((changed & control).sum()), int((changed & ~control).sum())
    only_control = int((~changed & control).sum())
    ends = paired_difference_interval(both, only_changed, only_control, n - both - only_changed - only_control)
    return CounterfactualReport(
        kind,
        CONFIRMED if ends[0] > 0 else NOT_CONFIRMED,
        images=n,
        changed=float(changed.mean()),
        control=float(control.mean()),
        difference=(only_changed - only_control) / n,
        interval=ends,
        **known,
    )
