"""Take the pictures of the HTML report that the documentation shows.

    python -m docs.screenshots failures-demo/report.html docs/images

writes the first screen of each case in :mod:`docs.screens`, ``screen-multilabel.png`` and so on,
``failing-images.png``, the strips of images of the worst class, and the first screens of the page at two widths:
``report-1600.png``, ``report-1600-dark.png``, ``report-360.png`` and ``report-360-dark.png``. Needs playwright and a
Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Locator, sync_playwright

from docs.screens import CASES
from lightning_failures.report import save_html

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
HEIGHTS = {1600: 1900, 360: 2600}
"""Height in pixels of the screenshot at each width."""

STRIPS_FILE = "failing-images.png"
STRIPS_WIDTH = 1600
"""Width of the page in pixels from which the strips are cropped; the page shows two columns there."""

MARGIN = 8
"""Pixels around the strips."""


def take_page(browser: Browser, report: Path, target: Path, *, width: int, dark: bool) -> None:
    """Write the first screens of the report at one width and in one colour scheme."""
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
    _reduce_colours(target, 128)


def take_cases(browser: Browser, target: Path) -> None:
    """Write the first screen, 1280 x 800, of the page of each case."""
    for name, case in CASES.items():
        made = case.make()
        with tempfile.TemporaryDirectory() as folder:
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
            slug = re.sub(r"[^a-z0-9]+", "-", name.lower().replace(",", ""))
            path = Path(folder) / "examples" / slug / "report.html"
            page.goto(save_html(made.result, path, images=made.images, embeddings=made.embeddings).as_uri())
            page.wait_for_timeout(500)
            picture = target / f"screen-{slug}.png"
            page.screenshot(path=picture)
            page.close()
        _reduce_colours(picture, 128)


def take_strips(browser: Browser, report: Path, target: Path) -> None:
    """Write the strips of images (hardest, easiest, least confident) of the first class that has any."""
    page = browser.new_page(
        viewport={"width": STRIPS_WIDTH, "height": 1000}, color_scheme="light", device_scale_factor=2
    )
    page.goto(report.resolve().as_uri())
    page.wait_for_timeout(500)
    card = page.locator("#cards details.card", has=page.locator("figure.picture")).first
    page.screenshot(path=target, clip=_clip(card.locator("figure.picture").first), full_page=True)
    page.close()
    _reduce_colours(target, 256)


def _clip(figure: Locator) -> FloatRect:
    """Return the rectangle of a figure of an unscrolled page, cut at its last column of images, with a margin."""
    box = figure.bounding_box()
    tiles = [tile.bounding_box() for tile in figure.locator(".tile").all()]
    right = max(tile["x"] + tile["width"] for tile in tiles if tile is not None)
    assert box is not None
    return {
        "x": box["x"] - MARGIN,
        "y": box["y"] - MARGIN,
        "width": right - box["x"] + 2 * MARGIN,
        "height": box["height"] + 2 * MARGIN,
    }


def _reduce_colours(target: Path, colours: int) -> None:
    """Store a picture with a palette: pages have few colours, and the files stay small."""
    image = Image.open(target).convert("RGB")
    image.quantize(colours, method=Image.Quantize.FASTOCTREE).save(target, optimize=True)


def main() -> None:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases-only", action="store_true", help="only the pictures of the cases")
    parser.add_argument("report", type=Path, help="the report.html of a run")
    parser.add_argument("output", type=Path, help="folder for the pictures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name)) is not None), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        take_cases(browser, options.output)
        if options.cases_only:
            return
        take_strips(browser, options.report, options.output / STRIPS_FILE)
        for width in HEIGHTS:
            for dark in (False, True):
                name = f"report-{width}{'-dark' if dark else ''}.png"
                take_page(browser, options.report, options.output / name, width=width, dark=dark)
        browser.close()


if __name__ == "__main__":
    main()
