"""Make texts and numbers fit for display.

Class names and captions are the user's words, which must be displayed but never interpreted: :func:`clean` removes
control characters, so that a name cannot colour a terminal or break a row, and :func:`escape_markdown` escapes Markdown
and HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b

NOTHING = "-"
"""Text for an undefined number."""

SMALLEST_P_VALUE = 0.001
"""Smallest p-value that is shown: 999 permutations cannot tell smaller ones apart."""

_FIT_FAILED = "its fit failed: "
_NAMED = 5  # classes that a note names


def clean(text: str, limit: int = 200) -> str:
    r"""Return one line of at most ``limit`` characters, without control characters, surrogates or extra spaces.

    >>> clean("two\nlines")
    'two lines'
    """
    text = text[: 4 * limit].encode("utf-8", "replace").decode("utf-8")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    r"""Replace control characters, except line breaks, by spaces, so that lines and columns keep their positions.

    >>> printable("a \x1b[31mred\n  word")
    'a  [31mred\n  word'
    """
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def escape_markdown(text: str, limit: int = 200) -> str:
    r"""Clean text and escape everything that Markdown or HTML would interpret, for use in a table cell.

    >>> escape_markdown("<b>|*two*\nlines")
    '&lt;b&gt;&#124;\\*two\\* lines'
    """
    text = re.sub(r"([\\`*_\[\]#~$])", r"\\\1", clean(text, limit).replace("&", "&amp;"))
    for character, entity in {"<": "&lt;", ">": "&gt;", "|": "&#124;", "@": "&#64;", "://": "&#58;//"}.items():
        text = text.replace(character, entity)
    return re.sub(r"\b(www)\.", r"\1&#46;", text, flags=re.IGNORECASE)  # GitHub turns bare addresses into links


def tag_part(text: str, limit: int = 80) -> str:
    """Return a readable part of a tag or file name; different texts have different parts.

    >>> tag_part("fire truck"), tag_part("../fire/truck")
    ('fire truck', '_fire_truck-cff15c2382c1ca5a')
    """
    readable = re.sub(r"[^\w .=+()-]", "_", clean(text, limit)).strip(" .")
    return readable if readable == text and not looks_digested(text) else with_digest(readable, text)


def with_digest(shortened: str, text: str) -> str:
    """Append a digest of ``text`` to a shortened form of it, to keep that unique.

    >>> with_digest("fire", "fire/truck")
    'fire-3eb1accc67f5194c'
    """
    return f"{shortened}-{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"


def looks_digested(text: str) -> bool:
    """Return whether a text ends like one returned by :func:`with_digest`."""
    return re.search(r"-[0-9a-f]{16}$", text) is not None


def shorten_caption(caption: str) -> str:
    """Remove the words that all captions have in common.

    >>> shorten_caption("a photo of an orange three")
    'orange three'
    """
    return re.sub(r"^an? photo of (?:an? (?=\S))?", "", clean(caption)) or clean(caption)


def number(value: float | None, spec: str = ".2f") -> str:
    """Format a number that may be undefined.

    >>> number(0.256), number(None), number(12, "d")
    ('0.26', '-', '12')
    """
    return NOTHING if value is None or value != value else format(value, spec)


def interval(ends: tuple[float, float] | None) -> str:
    """Format an interval that may be undefined.

    >>> interval((0.25, 0.4)), interval(None)
    ('0.25 to 0.40', '-')
    """
    return NOTHING if ends is None else " to ".join(map(number, ends))


def percent(value: float | None, *, signed: bool = False) -> str:
    """Format a share in [0, 1] as a percentage with one decimal, as everywhere; it may be undefined.

    >>> percent(0.7034), percent(None), percent(-0.021, signed=True)
    ('70.3 %', '-', '-2.1 %')
    """
    return NOTHING if value is None or value != value else f"{100 * value:{'+' if signed else ''}.1f} %"


def points(value: float | None, stderr: float | None = None) -> str:
    """Format a difference of two shares in percentage points, with its standard error if that is given.

    >>> points(0.4512), points(0.13, 0.02), points(None)
    ('+45.1 points', '+13.0 +- 2.0 points', '-')
    """
    if value is None or value != value:
        return NOTHING
    return f"{100 * value:+.1f}{'' if stderr is None else f' +- {100 * stderr:.1f}'} points"


def percent_interval(ends: tuple[float, float] | None, unit: str = "%") -> str:
    """Format an interval of shares, or of differences of shares with the unit "points"; it may be undefined.

    >>> percent_interval((0.25, 0.4)), percent_interval((0.1, 0.2), "points"), percent_interval(None)
    ('25.0 to 40.0 %', '10.0 to 20.0 points', '-')
    """
    return NOTHING if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} {unit}"


def p_text(value: float | None, name: str = "p") -> str:
    """Format a p-value with its name; the smallest ones say only that they are no larger.

    >>> p_text(0.0004), p_text(0.0312), p_text(None), p_text(0.2, "")
    ('p <= 0.001', 'p = 0.031', 'p = -', '0.2')
    """
    if value is not None and value <= SMALLEST_P_VALUE:
        return f"{name} <= {SMALLEST_P_VALUE:g}".lstrip()
    text = number(value, ".2g")
    return f"{name} = {text}" if name else text


def listed_ids(ids: Iterable[int], limit: int = 5) -> str:
    """Return a phrase that names the first ids, and how many more there are.

    >>> listed_ids([7]), listed_ids([3, 1, 2]), listed_ids(range(100, 112))
    ('id 7', 'ids 1, 2, 3', 'ids 100, 101, 102, 103, 104 and 7 more')
    """
    ascending = sorted(ids)
    named = ", ".join(str(i) for i in ascending[:limit])
    more = f" and {len(ascending) - limit} more" if len(ascending) > limit else ""
    return f"id{'s' if len(ascending) > 1 else ''} {named}{more}"


def fit_failed(error: Exception) -> str:
    """Return why a class or a group is skipped whose fit raised an error.

    >>> fit_failed(ArithmeticError("overflow"))
    'its fit failed: ArithmeticError: overflow'
    """
    return clean(f"{_FIT_FAILED}{type(error).__name__}: {error}")


def is_failed_fit(reason: str | None) -> bool:
    """Return whether a class or a group is skipped because its fit raised an error.

    >>> is_failed_fit("its fit failed: ArithmeticError: overflow"), is_failed_fit("no examples"), is_failed_fit(None)
    (True, False, False)
    """
    return reason is not None and reason.startswith(_FIT_FAILED)


def failure_notes(missing: str, reasons: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return one sentence for each reason why something is missing, with the first names for which it is.

    Args:
        missing: What is missing, up to the names.
        reasons: Pairs of a name and a reason.

    >>> failure_notes("captions for class", [("_", "no word"), ("cat", "no such token"), ("", "no word")])
    ("No captions for class '_', '': no word", "No captions for class 'cat': no such token")
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons:
        by_reason.setdefault(reason, []).append(name)
    notes = []
    for reason, names in by_reason.items():
        named = ", ".join(repr(clean(name, 40)) for name in names[:_NAMED])
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        notes.append(f"No {missing} {named}{more}: {clean(reason)}")
    return tuple(notes)


def listed_reasons(reasons: Mapping[int, str], limit: int = 3, *, total: int | None = None) -> str:
    """Return a phrase that names the first ids with their reasons, and how many more there are.

    Args:
        reasons: Reasons by id.
        limit: Number of ids to name.
        total: Number of all ids. Default: those that have a reason here.

    >>> listed_reasons({7: "OSError: truncated", 3: "looks like ..."})
    '3 (looks like ...), 7 (OSError: truncated)'
    >>> listed_reasons(dict.fromkeys(range(9), "NaN"), limit=1)
    '0 (NaN) and 8 more'
    """
    named = ", ".join(f"{i} ({reason})" for i, reason in sorted(reasons.items())[:limit])
    n_more = (len(reasons) if total is None else total) - min(limit, len(reasons))
    return f"{named} and {n_more} more" if n_more else named


def to_bytes(text: str) -> bytes:
    """Encode text as UTF-8; bytes that are not valid UTF-8, as in some folder names on Linux, are escaped."""
    return text.encode("utf-8", "backslashreplace")
