"""Take the picture of TensorBoard that the documentation shows.

    python docs/tensorboard_screenshot.py [folder of a demo]

writes ``docs/images/tensorboard.png``. Needs the packages of the extra ``test`` and a Chromium. Without a folder, the
demo runs first, for some minutes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from lightning_failures.cli.demo import demo
from tests.helpers.browser import ARGUMENTS, chromium
from tests.writers.server import tensorboard

TARGET = Path(__file__).parent / "images" / "tensorboard.png"
WIDTH, GAP = 1280, 8
ABOVE, BELOW, LEFT = 722, 500, 716
"""Heights of the two rows, and width of the charts, in pixels."""


def show_images(page: Page) -> None:
    """Show the pictures of one class at their actual size."""
    page.locator("tf-tag-filterer input").fill("classes/nine")
    page.get_by_text("Show actual image size").click()
    page.get_by_text("tag: failures/classes/nine").first.wait_for()


def show_charts(page: Page) -> None:
    """Show the charts of the directions without smoothing and with all outliers."""
    page.get_by_text("Ignore outliers in chart scaling").click()
    page.locator("tf-smoothing-input input").fill("0")
    page.keyboard.press("Enter")
    page.wait_for_timeout(1000)
    page.reload()  # the axes are computed again
    page.get_by_text("failures: grades", exact=True).click()


def show_points(page: Page) -> None:
    """Show the projector, with its side panels, from some distance."""
    page.frame_locator("iframe").frame_locator("iframe").get_by_text("Points: 1000").wait_for()
    page.wait_for_timeout(6000)
    page.mouse.move(750, 500)
    for _ in range(3):
        page.mouse.wheel(0, 100)  # zooms out
        page.wait_for_timeout(200)


def screenshot(
    page: Page, address: str, prepare: Callable[[Page], None], clip: tuple[int, int, int, int]
) -> Image.Image:
    """Open a page, prepare it, and return its part (x, y, width, height)."""
    page.goto("about:blank")
    page.goto(address)
    prepare(page)
    page.wait_for_timeout(6000)
    x, y, width, height = clip
    png = page.screenshot(clip={"x": x, "y": y, "width": width, "height": height})
    return Image.open(BytesIO(png)).convert("RGB")


def compose(folder: Path) -> Image.Image:
    """Return three pages in one picture: images above, charts and points below."""
    right = WIDTH - LEFT - GAP
    with tensorboard(folder) as board, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        screenshot(
            page, f"{board}#text", lambda page: None, (0, 0, 1, 1)
        )  # the first visit has no tab for the projector
        above = screenshot(page, f"{board}#images", show_images, (0, 0, WIDTH, ABOVE))
        page.set_viewport_size({"width": WIDTH + 120, "height": 900})
        lines = screenshot(page, f"{board}#custom_scalars", show_charts, (362, 64, LEFT, BELOW))
        page.set_viewport_size({"width": 1500, "height": 950})
        cloud = screenshot(page, f"{board}#projector", show_points, (312, 64, 876, 876 * BELOW // right))
        browser.close()
    canvas = Image.new("RGB", (WIDTH, ABOVE + GAP + BELOW), "white")
    canvas.paste(above, (0, 0))
    canvas.paste(lines, (0, ABOVE + GAP))
    canvas.paste(cloud.resize((right, BELOW), Image.Resampling.LANCZOS), (LEFT + GAP, ABOVE + GAP))
    return canvas


def main() -> None:
    """Write the picture with a palette of 256 colours, which keeps the file small."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(scratch) / "failures-demo"
        if len(sys.argv) < 2:
            demo(output=folder)
        TARGET.parent.mkdir(exist_ok=True)
        compose(folder).quantize(256, dither=Image.Dither.NONE).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
