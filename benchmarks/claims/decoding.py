"""Hard prompts beat neutral prompts, easy ones do not (Fig. 9)."""

from __future__ import annotations

from typing import Any

from claims.common import World
from claims.comparing import Comparison

COMPARISONS: tuple[Comparison, ...] = ()


def run(world: World) -> dict[str, Any]:
    """Not yet."""
    raise NotImplementedError
