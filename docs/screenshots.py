"""Take the pictures of the HTML report that the documentation shows.

    python docs/screenshots.py failures-demo/coloured_digits/version_0/failures/report.html docs/images

writes ``report-1600.png``, ``report-1600-dark.png``, ``report-360.png`` and ``report-360-dark.png``: the first screens,
as they look at these widths. Needs playwright and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
HEIGHTS = {1600: 1900, 360: 2600}
"""Pixels that are shown at each width."""


def take(browser: Browser, report: Path, target: Path, *, width: int, dark: bool) -> None:
    """Write one picture, with few colours: it is a page, not a photo."""
    height = HEIGHTS[width]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    page.goto(report.resolve().as_uri())
    page.wait_for_timeout(500)
    page.wait_for_function(
        "[...document.querySelectorAll('.chart')].every(c => c.dataset.drawn"
        f" || !c.checkVisibility() || c.getBoundingClientRect().top > {height})"
    )
    page.screenshot(path=target)
    page.close()
    Image.open(target).convert("RGB").quantize(128, method=Image.Quantize.FASTOCTREE).save(target, optimize=True)


def main() -> None:
    """Take all four."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("report", type=Path, help="the report.html of a run")
    parser.add_argument("output", type=Path, help="folder for the pictures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name)) is not None), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        for width in HEIGHTS:
            for dark in (False, True):
                name = f"report-{width}{'-dark' if dark else ''}.png"
                take(browser, options.report, options.output / name, width=width, dark=dark)
        browser.close()


if __name__ == "__main__":
    main()
