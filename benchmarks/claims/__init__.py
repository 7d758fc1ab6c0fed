"""The claims of Jain et al. (ICLR 2023) and Wong et al. (ICML 2021), in small: one module a claim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from claims import (
    against_domino,
    captions,
    corruption,
    decoding,
    degree,
    filtering,
    flagged,
    prompts,
    sparse,
    strength,
    transfer,
    unbalanced,
    upweight,
)
from claims.common import World
from claims.comparing import Comparison

__all__ = ["CLAIMS", "OTHER_PAPERS", "PAPERS"]

Claims = dict[str, tuple[Callable[[World], dict[str, Any]], tuple[Comparison, ...]]]

CLAIMS: Claims = {
    "flagged": (flagged.run, flagged.COMPARISONS),
    "upweight": (upweight.run, upweight.COMPARISONS),
    "filter": (filtering.run, filtering.COMPARISONS),
    "prompts": (prompts.run, prompts.COMPARISONS),
    "decode": (decoding.run, decoding.COMPARISONS),
    "strength": (strength.run, strength.COMPARISONS),
    "captions": (captions.run, captions.COMPARISONS),
}
"""Name on the command line -> what runs one seed of it, and what is compared."""

PAPERS: Claims = {
    "degree": (degree.run, degree.COMPARISONS),
    "against_domino": (against_domino.run, against_domino.COMPARISONS),
    "unbalanced": (unbalanced.run, unbalanced.COMPARISONS),
    "corruption": (corruption.run, corruption.COMPARISONS),
    "transfer": (transfer.run, transfer.COMPARISONS),
}
"""The same for further claims, which are run when they are asked for."""

OTHER_PAPERS: Claims = {"sparse": (sparse.run, sparse.COMPARISONS)}
"""The same for claims of another paper, which are run when they are asked for."""
