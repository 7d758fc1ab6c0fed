"""Tables of cells as text: aligned for the terminal, or as Markdown."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def aligned_table(rows: Sequence[Sequence[str]], widths: Sequence[int], align: str) -> str:
    """Return rows as lines with aligned columns; cells that are too wide are cut.

    Args:
        rows: Cells of each row, the head first.
        widths: Terminal columns of each table column.
        align: "l" or "r" for each table column.

    >>> print(aligned_table([("class", "n"), ("cat", "12")], (5, 2), "lr"))
    class   n
    cat    12
    """
    lines = []
    for row in rows:
        cells = [_pad(cell, width, side) for cell, width, side in zip(row, widths, align, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def pipe_table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Return a Markdown table; cells must be escaped already.

    Args:
        head: Names of the columns.
        rows: Cells of each row.
        align: "l" or "r" for each column.

    >>> print(pipe_table(("class", "n"), [("cat", "12")], "lr"))
    | class | n |
    | :--- | ---: |
    | cat | 12 |
    """
    rule = ["---:" if side == "r" else ":---" for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def terminal_width(text: str) -> int:
    """Return the terminal columns of a text: wide characters take two, combining marks none.

    >>> terminal_width("猫cat")
    5
    """
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, width: int, side: str) -> str:
    if terminal_width(text) > width:
        while terminal_width(text) >= width:
            text = text[:-1]
        text += "…"
    space = " " * (width - terminal_width(text))
    return space + text if side == "r" else text + space
