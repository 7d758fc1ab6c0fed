"""The chart library of the page: Vega, Vega-Lite and vega-embed as one script, bundled once for each version."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib.metadata import version

import xxhash

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.home import default_cache_folder, private_folder

_BUNDLE = """
import sys
sys.path[:] = {path!r}
import vl_convert
sys.stdout.buffer.write(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").encode())
"""


@cache
def prepare() -> Future[str]:
    """Start to read or to bundle the library, in the background.

    Bundling takes seconds, once for each version and machine, so callers with other work to do start it first.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="vega")
    future = pool.submit(_library)
    pool.shutdown(wait=False)
    return future


def _library() -> str:
    """Return the library, from the file of an earlier run if it is there as it was written.

    The script runs in whatever page is opened, so its file lies where only this user can write: a cache folder may be
    shared.
    """
    try:
        root = default_cache_folder()
        root.mkdir(parents=True, exist_ok=True)
        path = private_folder(root) / f"vega-{version('vl-convert-python')}.js"
    except OSError:  # a folder that cannot be written costs the time of every run
        return _bundle()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        digest, _, source = path.read_text(encoding="utf-8").partition("\n")
        if digest == _digest(source):
            return source
    source = _bundle()
    with contextlib.suppress(OSError):
        write_atomically(path, f"{_digest(source)}\n{source}".encode())
    return source


def _digest(source: str) -> str:
    """Return a line that no damaged file begins with."""
    return f"// {xxhash.xxh3_128_hexdigest(source.encode())}"


def _bundle() -> str:
    # in a subprocess, because the bundler may hold the GIL all the time
    code = _BUNDLE.format(path=sys.path)  # the subprocess finds the same packages
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)  # noqa: S603 - our own
    source = done.stdout.decode("utf-8")
    return source.replace("</script", "<\\/script").replace("<!--", "<\\!--")
