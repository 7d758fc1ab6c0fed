"""The page of a run rendered from its records, without using the network.

The page contains its pictures, style and scripts, and a content security policy that forbids everything else: requests,
and scripts other than the two whose digests it lists. Texts of users are escaped by the templates and by
:func:`data_block`.
"""

from __future__ import annotations

import json
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lightning_failures.directions.criterion import CRITERION
from lightning_failures.report.html.library import prepare
from lightning_failures.report.html.page import build_page
from lightning_failures.report.run_folder import Run

if TYPE_CHECKING:
    from jinja2 import Environment


_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render(run: Run, *, charts: bool = True) -> str:
    """Return the report of a run as one HTML page that needs no network.

    Args:
        run: The last report, and optionally the history, the table of examples and the pictures.
        charts: Whether charts are drawn; without them the page needs no chart library, most of the size of a small one.

    Returns:
        The text of the page, which can be encoded as UTF-8 whatever class names it shows.
    """
    from markupsafe import Markup

    page = build_page(run)
    page = page if charts else page.without_charts()
    style, script = _asset("report.css"), _asset("report.js")
    library = prepare().result() if page.charts else ""
    data = {"examples": page.examples, "charts": page.charts, "class_rows": page.class_rows}
    text: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            n=page.figures,
            style=Markup(style),  # noqa: S704 - ours
            scripts=[Markup(source) for source in (library, script) if source],  # noqa: S704 - ours, and Vega's
            hashes=[_digest(source) for source in (library, script) if source],
            data=Markup(data_block(data)),  # noqa: S704 - escaped
        )
    )
    return text


def data_block(value: Any) -> str:
    r"""Return JSON that is safe inside a script element and in UTF-8: no text in it ends the element or the line.

    >>> data_block({"name": "</script>\u2028\udcff"})
    '{"name":"\\u003c/script\\u003e\\u2028\\udcff"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.translate(_ESCAPES)


def _digest(source: str) -> str:
    return f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (files("lightning_failures.report.html") / "templates" / name).read_text(encoding="utf-8")


def _typeset(sentence: str) -> str:
    """Replace ASCII forms of signs with typographic ones."""
    return (
        sentence.replace("+-", "\N{PLUS-MINUS SIGN}")
        .replace("<=", "\N{LESS-THAN OR EQUAL TO}")
        .replace(" %", "\N{NO-BREAK SPACE}%")
    )


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from lightning_failures.core.text import clean, shorten_caption
    from lightning_failures.report.html.figures import show

    environment = Environment(
        loader=PackageLoader("lightning_failures.report.html", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(clean=clean, short=shorten_caption, show=show, say=_typeset)
    environment.globals["criterion"] = CRITERION
    return environment
