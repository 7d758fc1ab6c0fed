"""A real run in the real TensorBoard, looked at in a browser."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import lightning as L
import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_failures import FailureModes
from lightning_failures.bundled.digits import ColouredDigitsDataModule, DigitClassifier
from lightning_failures.callback import AdvancedOptions
from lightning_failures.data.report import FailureReport
from tests.writers.server import tensorboard

pytest_plugins = ["tests.helpers.browser"]

pytestmark = pytest.mark.slow

RUN = "digits/version_0"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> tuple[Path, FailureReport]:
    """The folder of the logs of a short training on coloured digits, and its last report."""
    folder = tmp_path_factory.mktemp("logs")
    modes = FailureModes(
        encoder="embedded:digits",
        robust_encoder="embedded:digits",
        captions="digits",
        on_error="raise",
        advanced=AdvancedOptions(permutations=99, worst_k=2, cache_folder=tmp_path_factory.mktemp("cache")),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=TensorBoardLogger(folder, name="digits"),
        callbacks=[modes],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's on workers and steps
        L.seed_everything(0, verbose=False)
        trainer.fit(DigitClassifier(), datamodule=ColouredDigitsDataModule(train_size=900, val_size=600))
    return folder, modes.last_report


@pytest.fixture(scope="module")
def board(fitted) -> str:
    with tensorboard(fitted[0]) as address:
        yield address


def served(board: str, route: str, **query: str) -> bytes:
    with urlopen(f"{board}data/plugin/{route}?{urlencode(query)}", timeout=60) as answer:
        return answer.read()


def test_scalars__keys_of_failures(board, visit):
    seen = visit(f"{board}#timeseries")
    for key in ("accuracy", "aler_minus_ber_mean"):
        seen.page.get_by_text(f"failures/{key}", exact=True).first.wait_for()
    assert seen.errors == []


def test_custom_scalars__charts_hold_lines(board, visit):
    seen = visit(f"{board}#custom_scalars")
    for category in ("grades", "directions", "trees", "worst classes"):
        seen.page.get_by_text(f"failures: {category}", exact=True).wait_for()
    assert seen.page.get_by_text("failures: interventions").count() == 0  # there are none
    seen.page.get_by_text("accuracy and coverage", exact=True).wait_for()
    seen.page.get_by_text("Matches (2)").first.wait_for()  # accuracy and coverage
    assert seen.errors == []


def test_custom_scalars__every_pattern_finds_its_keys(board):
    layout = json.loads(served(board, "custom_scalars/layout"))
    tags = [tag for category in layout["category"] for chart in category["chart"] for tag in chart["multiline"]["tag"]]
    assert len(tags) > 10
    for tag in tags:
        answer = json.loads(served(board, "custom_scalars/scalars", run=RUN, tag=tag))
        found = answer["tag_to_events"]
        assert found, tag
        assert all(name.startswith("failures/") and 1 <= len(events) <= 2 for name, events in found.items())


def test_images__a_class_picture_is_there(board, visit, fitted):
    seen = visit(f"{board}#images")
    entry = next(one for one in fitted[1].classes if one.pattern)
    drawn = json.loads(served(board, "images/tags"))[RUN]
    assert {tag.split("/")[1] for tag in drawn} == {"classes", "features", "findings", "leaves"}
    assert sum(tag.startswith("failures/classes/") for tag in drawn) == 2
    assert entry.hardest_ids
    seen.page.get_by_text("tag: failures/classes/").first.wait_for()
    seen.page.wait_for_function(LOADED)
    assert seen.errors == []


LOADED = """() => {
  const images = [];
  const walk = root => root.querySelectorAll("*").forEach(one => {
    if (one.tagName === "IMG") images.push(one);
    if (one.shadowRoot) walk(one.shadowRoot);
  });
  walk(document);
  return images.some(one => one.src.includes("individualImage") && one.naturalWidth > 100);
}"""
"""Whether an image of the server is shown; TensorBoard's elements have documents of their own."""


def test_text__the_table_is_read_as_one(board, visit, fitted):
    seen = visit(f"{board}#text")
    seen.page.get_by_text("tag: failures/table/text_summary").wait_for()
    for head in ("error rate", "change", "hardest caption"):
        seen.page.locator("th", has_text=head).first.wait_for()
    worst = min(fitted[1].classes, key=lambda one: one.accuracy)
    seen.page.locator("td", has_text=f"{100 * (1 - worst.accuracy):.1f} %").first.wait_for()
    seen.page.get_by_text("How far to trust it").first.wait_for()
    assert seen.errors == []


def test_projector__points_have_labels_and_thumbnails(board, visit, fitted):
    seen = visit(f"{board}#projector")
    page = seen.page.frame_locator("iframe").frame_locator("iframe")
    page.get_by_text("Points: 600").wait_for()
    page.get_by_text("Dimension: 128").wait_for()
    for route in ("tensor", "metadata", "sprite_image"):
        for _ in range(600):
            if any(urlsplit(address).path.endswith(f"/projector/{route}") for address in seen.requested):
                break
            seen.page.wait_for_timeout(100)
        else:
            pytest.fail(f"{route} was not asked for")
    name = f"failures/examples:{fitted[1].global_step:05d}"
    lines = served(board, "projector/metadata", run=RUN, name=name).decode().splitlines()
    assert len(lines) == 1 + 600
    assert len(served(board, "projector/tensor", run=RUN, name=name)) == 600 * 128 * 4
    assert served(board, "projector/sprite_image", run=RUN, name=name).startswith(b"\x89PNG")
    assert seen.errors == []
    assert seen.refused == []
