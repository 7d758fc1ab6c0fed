"""A real browser for tests of pages.

A test module needs ``pytest_plugins = ["tests.helpers.browser"]``, and its tests the fixture ``visit``. The browser is
the Chromium of the machine; nothing is downloaded, and no page reaches the network. Playwright runs an event loop in
this thread while the browser is open, so the browser is closed at the end of each module: later tests must not find a
running loop. PYTEST_DONT_REWRITE: this module holds no assertions, and test modules import it before it is a plugin.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
LOCAL_HOSTS = ("localhost", "127.0.0.1")


@dataclass
class Visit:
    """An open page and the errors since it was opened.

    Attributes:
        page: Playwright's page.
        errors: Console errors, uncaught exceptions, failed requests and responses with status 400 or higher.
        refused: Requested addresses that are neither files, nor data, nor on this machine.
        requested: All requested addresses except data URIs.
    """

    page: Page
    errors: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)


def chromium() -> str | None:
    """Return the path of the browser, or None."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name)) is not None), None)


def is_local(address: str) -> bool:
    """Return whether an address is a file, data, or on this machine."""
    parts = urlsplit(address)
    return parts.scheme in ("file", "data", "blob", "about") or parts.hostname in LOCAL_HOSTS


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium, started once a module."""
    path = chromium()
    if path is None:
        if os.environ.get("LIGHTNING_FAILURES_BROWSER") == "required":
            pytest.fail("LIGHTNING_FAILURES_BROWSER=required, and there is no chromium on the PATH")
        pytest.skip("needs a browser: chromium, chromium-browser or google-chrome on the PATH")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Open a page: ``visit(path or address, width=1600, height=1000, dark=False)`` -> :class:`Visit`."""
    contexts = []

    def open_page(
        address: str | Path, *, width: int = 1600, height: int = 1000, dark: bool = False, timeout: float = 60.0
    ) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        contexts.append(context)
        context.set_default_timeout(timeout * 1000)
        seen = Visit(context.new_page())

        def route(asked: Route) -> None:
            if is_local(asked.request.url):
                asked.continue_()
            else:
                seen.refused.append(asked.request.url)
                asked.abort()

        page = seen.page
        page.route("**/*", route)
        page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("requestfailed", lambda request: seen.errors.append(f"failed: {request.url[:200]}"))
        page.on("request", lambda r: None if r.url.startswith("data:") else seen.requested.append(r.url))
        page.on("response", lambda r: seen.errors.append(f"{r.status}: {r.url[:200]}") if r.status >= 400 else None)
        page.goto(address.resolve().as_uri() if isinstance(address, Path) else address)
        return seen

    yield open_page
    for context in contexts:
        context.close()
