"""From the records of a run to one page of HTML: nothing is read from disk, asked of the network, or run.

The page holds its pictures, its style and its scripts, and a policy that forbids anything else: no request, and no
script but the two whose digests it names. What users wrote is escaped by the templates, and by :func:`data_block`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64encode
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lightning_failures.report.html.page import view
from lightning_failures.report.run_folder import Run

if TYPE_CHECKING:
    from jinja2 import Environment


_BUNDLE = """
import sys
sys.path[:] = {path!r}
import vl_convert
sys.stdout.buffer.write(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").encode())
"""

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render(run: Run) -> str:
    """Write the report of a run as one HTML file that needs no network.

    Args:
        run: Its last report, those before it, its examples and its pictures; any of these may lack but the report.

    Returns:
        The text of the page. It can be encoded as UTF-8 whatever names it shows.
    """
    from markupsafe import Markup

    page = view(run)
    drawn = any(page.charts.values())
    style, script, library = _asset("report.css"), _asset("report.js"), prepare().result() if drawn else ""
    text: str = (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            n=page.figures,
            style=Markup(style),  # noqa: S704 - ours
            scripts=[Markup(source) for source in (library, script) if source],  # noqa: S704 - ours, and Vega's
            hashes=[_digest(source) for source in (library, script) if source],
            data=Markup(data_block({"examples": page.examples, "charts": page.charts})),  # noqa: S704 - escaped
        )
    )
    return text


def data_block(value: Any) -> str:
    r"""JSON that can stand between script tags, and in a file of UTF-8: no text in it ends the element or the line.

    >>> data_block({"name": "</script>\u2028\udcff"})
    '{"name":"\\u003c/script\\u003e\\u2028\\udcff"}'
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.translate(_ESCAPES)


def _digest(source: str) -> str:
    return f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (files("lightning_failures.report.html") / "templates" / name).read_text(encoding="utf-8")


def _say(sentence: str) -> str:
    return (
        sentence.replace("+-", "\N{PLUS-MINUS SIGN}")
        .replace("<=", "\N{LESS-THAN OR EQUAL TO}")
        .replace(" %", "\N{NO-BREAK SPACE}%")
    )


@cache
def prepare() -> Future[str]:
    """Begin to put Vega, Vega-Lite and vega-embed together as one script, beside everything else.

    It takes seconds, once a process. Whoever has other work to do first calls this before.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="vega")
    future = pool.submit(_library)
    pool.shutdown(wait=False)
    return future


def _library() -> str:
    # in a process of its own, because it may keep Python's lock all the time
    code = _BUNDLE.format(path=sys.path)  # so that it finds what is found here
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)  # noqa: S603 - our own
    source = done.stdout.decode("utf-8")
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")


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
    environment.filters.update(clean=clean, short=shorten_caption, show=show, say=_say)
    return environment
