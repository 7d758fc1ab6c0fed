"""The claims of Jain et al. (ICLR 2023) and Wong et al. (ICML 2021), in small: one module a claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from claims import captions, decoding, filtering, flagged, prompts, sparse, strength, upweight
from claims.common import World
from claims.comparing import Comparison

__all__ = ["CLAIMS", "OUTSIDE_OF_DEFAULT"]

CLAIMS: dict[str, tuple[Callable[[World], dict[str, Any]], tuple[Comparison, ...]]] = {
    "flagged": (flagged.run, flagged.COMPARISONS),
    "upweight": (upweight.run, upweight.COMPARISONS),
    "filter": (filtering.run, filtering.COMPARISONS),
    "prompts": (prompts.run, prompts.COMPARISONS),
    "decode": (decoding.run, decoding.COMPARISONS),
    "strength": (strength.run, strength.COMPARISONS),
    "captions": (captions.run, captions.COMPARISONS),
    "sparse": (sparse.run, sparse.COMPARISONS),
}
"""Name on the command line -> what runs one seed of it, and what is compared."""

OUTSIDE_OF_DEFAULT = ("sparse",)
"""Claims that run only when they are named: those of another paper."""
