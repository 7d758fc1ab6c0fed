"""The planted shortcut: the tints of each digit and their frequency.

Eight of the ten digits have a *usual* and an *unusual* tint. Most training images show the usual one, so that a
classifier learns to read the tint; validation and test show both equally often. Five of the ten tints are usual, each
for one or two digits, and a digit's unusual tint is the usual one of other digits, so the tint alone does not identify
the digit. The other two digits have no shortcut: they show all ten tints uniformly in every split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_failures.bundled.digits.render import CLASSES, TINTS

NOTHING = -1
"""Index in place of a tint, for a digit without a shortcut."""

_PLANTED = 8
_USUAL_TINTS = 5


@dataclass(frozen=True)
class Shortcut:
    """Usual and unusual tint of every digit, (10,) int64 each: indices into ``TINTS``, or ``NOTHING``."""

    usual: Tensor
    unusual: Tensor

    def truth(self) -> tuple[dict[str, str] | None, ...]:
        """Return for each digit the names of its two tints, or None if it has no shortcut."""
        names = tuple(TINTS)
        return tuple(
            None if usual == NOTHING else {"usual_tint": names[usual], "unusual_tint": names[unusual]}
            for usual, unusual in zip(self.usual.tolist(), self.unusual.tolist(), strict=True)
        )


def plant_shortcut(rng: np.random.Generator) -> Shortcut:
    """Draw the digits with a shortcut and their tints.

    The digits are put in random order; the k-th has usual tint k mod 5 and unusual tint k + s mod 5, where s in 1 ... 4
    is drawn once for the first five digits and once for the other three.

    >>> shortcut = plant_shortcut(np.random.default_rng(0))
    >>> int((shortcut.usual != NOTHING).sum()), len(set(shortcut.usual.tolist()) - {NOTHING})
    (8, 5)
    """
    digits = rng.permutation(len(CLASSES))[:_PLANTED]
    tints = rng.permutation(len(TINTS))[:_USUAL_TINTS]
    k = np.arange(_PLANTED)
    shift = rng.integers(1, _USUAL_TINTS, size=2)[k // _USUAL_TINTS]
    usual = np.full(len(CLASSES), NOTHING)
    unusual = np.full(len(CLASSES), NOTHING)
    usual[digits] = tints[k % _USUAL_TINTS]
    unusual[digits] = tints[(k + shift) % _USUAL_TINTS]
    return Shortcut(torch.from_numpy(usual), torch.from_numpy(unusual))


def draw_tints(labels: Tensor, shortcut: Shortcut, strength: float, rng: np.random.Generator) -> Tensor:
    """Draw a tint for each example.

    Args:
        labels: (N,) int64 digits.
        shortcut: The tints of each digit.
        strength: Probability of the usual tint, as opposed to the unusual one.
        rng: Random generator.

    Returns:
        (N,) int64, indices into ``TINTS``.
    """
    size = len(labels)
    is_usual = torch.from_numpy(rng.random(size) < strength)
    anything = torch.from_numpy(rng.integers(len(TINTS), size=size))
    planted = torch.where(is_usual, shortcut.usual[labels], shortcut.unusual[labels])
    return torch.where(planted == NOTHING, anything, planted)
