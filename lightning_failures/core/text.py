"""Texts and numbers made fit to be shown.

Class names and captions are the user's words. They are shown, never interpreted: :func:`clean` takes control characters
out (a name cannot colour a terminal or break a row), :func:`escape_markdown` escapes what Markdown or HTML would read.
"""

from __future__ import annotations

import re
from hashlib import blake2b

NOTHING = "-"


def clean(text: str, limit: int = 200) -> str:
    r"""Make text fit for one line of ``limit`` characters: no control characters, no lone surrogates, no runs of space.

    >>> clean("two\nlines")
    'two lines'
    """
    text = text[: 4 * limit].encode("utf-8", "replace").decode("utf-8")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    r"""Take out what a terminal would interpret, and leave lines and columns where they are.

    >>> printable("a \x1b[31mred\n  word")
    'a  [31mred\n  word'
    """
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def escape_markdown(text: str, limit: int = 200) -> str:
    r"""Clean text and escape all that Markdown or HTML would interpret, so that it can stand in a table cell.

    >>> escape_markdown("<b>|*two*\nlines")
    '&lt;b&gt;&#124;\\*two\\* lines'
    """
    text = re.sub(r"([\\`*_\[\]#~$])", r"\\\1", clean(text, limit).replace("&", "&amp;"))
    for character, entity in {"<": "&lt;", ">": "&gt;", "|": "&#124;", "@": "&#64;", "://": "&#58;//"}.items():
        text = text.replace(character, entity)
    return re.sub(r"\b(www)\.", r"\1&#46;", text, flags=re.IGNORECASE)  # GitHub makes links of bare addresses


def tag_part(text: str, limit: int = 80) -> str:
    """Make one part of a tag, or of the name of a file, that people can read; different texts have different parts.

    >>> tag_part("fire truck"), tag_part("../fire/truck")
    ('fire truck', '_fire_truck-cff15c2382c1ca5a')
    """
    plain = re.sub(r"[^\w .=+()-]", "_", clean(text, limit)).strip(" .")
    return plain if plain == text and not looks_digested(text) else with_digest(plain, text)


def with_digest(plain: str, text: str) -> str:
    """Put behind a shortened text what tells it from other texts.

    >>> with_digest("fire", "fire/truck")
    'fire-3eb1accc67f5194c'
    """
    return f"{plain}-{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=8).hexdigest()}"


def looks_digested(text: str) -> bool:
    """Whether a text could be taken for one of :func:`with_digest`."""
    return re.search(r"-[0-9a-f]{16}$", text) is not None


def shorten_caption(caption: str) -> str:
    """Drop the words that all captions share.

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


def to_bytes(text: str) -> bytes:
    """Encode text in which names may hold bytes that are no UTF-8 (as folder names on Linux may)."""
    return text.encode("utf-8", "backslashreplace")
