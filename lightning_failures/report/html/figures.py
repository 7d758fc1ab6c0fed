"""Numbers of the page, each read from a record by its path and marked up with it.

``<data value="0.23076923" data-of="report/classes/3/accuracy">23.1 %</data>`` holds the rounded number, the exact one,
and its path in ``report.json``. Paths of derived numbers are ``1 - path`` and ``path - path``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_failures.core.text import p_text

if TYPE_CHECKING:
    from markupsafe import Markup


NO_NUMBER = "\N{EN DASH}"
_FORMATS = {"score": ".2f", "amount": ",.1f", "signed": "+.2f", "rate": ".1%", "threshold": ".3g"}


def show(value: float | None, kind: str) -> str:
    """Format a number for the page.

    Args:
        value: None and NaN give an en dash.
        kind: "count", or one of "score" (0.87), "amount" (12.3), "signed" (-0.87), "rate" (12.3 %), "points" (+12.3
            percentage points), "p" (0.0012), "threshold" (three significant digits).

    >>> show(1234, "count"), show(0.5, "score"), show(0.0123, "p")
    ('1,234', '0.50', '0.012')
    """
    if value is None or math.isnan(value):
        return NO_NUMBER
    if kind == "p":
        return p_text(value, "").replace("<=", "\N{LESS-THAN OR EQUAL TO}")
    if kind == "points":
        text = f"{100 * value:+.1f}\N{NARROW NO-BREAK SPACE}points"
    else:
        text = f"{value:,}" if kind == "count" else format(value, _FORMATS[kind])
    return text.replace("-", "\N{MINUS SIGN}").replace("%", "\N{NARROW NO-BREAK SPACE}%")


class Figures:
    """Reads numbers from named records and formats them as elements of the page.

    Args:
        documents: Records by name; ``"report"`` is the one in ``report.json``.
    """

    def __init__(self, documents: Mapping[str, Any]) -> None:
        self._documents = documents

    def value(self, path: str) -> float | None:
        """Return the number at a path such as ``"report/classes/3/accuracy"``, or None."""
        found: Any = self._documents
        for part in path.split("/"):
            if isinstance(found, Mapping):
                found = found.get(part)
            elif isinstance(found, Sequence):
                found = found[int(part)] if int(part) < len(found) else None
            elif isinstance(found, Tensor):
                found = found[int(part)].item()
            else:
                found = getattr(found, part, None)
        return found if isinstance(found, int | float) and math.isfinite(found) else None

    def at(self, path: str, kind: str = "score") -> Markup:
        """Return the element of the number at a path."""
        return _element(self.value(path), path, kind)

    def complement(self, path: str, kind: str = "rate") -> Markup:
        """Return the element of 1 minus the number at a path, such as an error rate from an accuracy."""
        value = self.value(path)
        return _element(None if value is None else 1 - value, f"1 - {path}", kind)

    def minus(self, path: str, other: str, kind: str = "signed") -> Markup:
        """Return the element of the difference of the numbers at two paths."""
        value = self.difference(path, other)
        return _element(value, f"{path} - {other}", kind)

    def difference(self, path: str, other: str) -> float | None:
        """Return the difference of the numbers at two paths, or None if one is undefined."""
        one, two = self.value(path), self.value(other)
        return None if one is None or two is None else one - two

    def interval(self, path: str, kind: str = "rate") -> Markup:
        """Return the elements of both ends of an interval."""
        from markupsafe import Markup

        if self.value(f"{path}/0") is None:
            return Markup(NO_NUMBER)  # noqa: S704 - a constant
        return Markup("{} to {}").format(self.at(f"{path}/0", kind), self.at(f"{path}/1", kind))


def _element(value: float | None, of: str, kind: str) -> Markup:
    from markupsafe import Markup

    if value is None:
        return Markup('<span class="none">{}</span>').format(NO_NUMBER)
    return Markup('<data value="{!r}" data-of="{}">{}</data>').format(value, of, show(value, kind))
