"""The planted shortcut: which digit wears which tint, and how often.

Eight of the ten digits get a *usual* and an *unusual* tint. Training shows the usual one in most of the images, so that
a classifier learns to read the tint; validation and test show both equally often. Five of the ten tints are usual, each
for one or two digits, and a digit's unusual tint is the usual one of others: the tint alone never names the digit.
The two digits left over have nothing planted: all ten tints, uniformly, everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_failures.bundled.digits.render import CLASSES, TINTS

NOTHING = -1
"""Stands for the tint of a digit that has nothing planted."""

_PLANTED = 8
_USUAL_TINTS = 5


@dataclass(frozen=True)
class Shortcut:
    """Usual and unusual tint of every digit, (10,) int64 each: indices into ``TINTS``, or ``NOTHING``."""

    usual: Tensor
    unusual: Tensor

    def truth(self) -> tuple[dict[str, str] | None, ...]:
        """For each digit the names of its two tints, or None where nothing is planted."""
        names = tuple(TINTS)
        return tuple(
            None if usual == NOTHING else {"usual_tint": names[usual], "unusual_tint": names[unusual]}
            for usual, unusual in zip(self.usual.tolist(), self.unusual.tolist(), strict=True)
        )


def plant_shortcut(rng: np.random.Generator) -> Shortcut:
    """Draw the digits and their tints.

    The planted digits stand in a random row; the k-th has usual tint k mod 5, and its unusual tint is that of its right
    neighbours: k + s mod 5, where s in 1 ... 4 is drawn for the first five of the row and again for the other three.

    >>> shortcut = plant_shortcut(np.random.default_rng(0))
    >>> int((shortcut.usual != NOTHING).sum()), len(set(shortcut.usual.tolist()) - {NOTHING})
    (8, 5)
    """
    row = rng.permutation(len(CLASSES))[:_PLANTED]
    tints = rng.permutation(len(TINTS))[:_USUAL_TINTS]
    place = np.arange(_PLANTED)
    step = rng.integers(1, _USUAL_TINTS, size=2)[place // _USUAL_TINTS]
    usual, unusual = (np.full(len(CLASSES), NOTHING) for _ in range(2))
    usual[row] = tints[place % _USUAL_TINTS]
    unusual[row] = tints[(place + step) % _USUAL_TINTS]
    return Shortcut(torch.from_numpy(usual), torch.from_numpy(unusual))


def draw_tints(labels: Tensor, shortcut: Shortcut, strength: float, rng: np.random.Generator) -> Tensor:
    """Draw a tint for each example.

    Args:
        labels: (N,) int64 digits.
        shortcut: Who wears what.
        strength: Probability of the usual tint; the unusual one has the rest.
        rng: Source of randomness.

    Returns:
        (N,) int64, indices into ``TINTS``.
    """
    size = len(labels)
    is_usual = torch.from_numpy(rng.random(size) < strength)
    anything = torch.from_numpy(rng.integers(len(TINTS), size=size))
    planted = torch.where(is_usual, shortcut.usual[labels], shortcut.unusual[labels])
    return torch.where(planted == NOTHING, anything, planted)
