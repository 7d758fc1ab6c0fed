"""The page of a task with a verdict per example, in a real browser, and its options from YAML."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from tests.end_to_end.test_trust_verdicts import Masks, Segmentation, read_iou
from tests.helpers.toy import callback, trainer
from tests.trainer.test_options import from_yaml

pytest_plugins = ["tests.helpers.browser"]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The number of training batches")


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verdicts")
    failures = callback(
        pictures=True,
        robust_encoder=callback().encoder,
        read_batch=read_iou,
        failed_below=0.5,
        cache_folder=folder / "cache",
    )
    run = trainer(folder, failures, logger=TensorBoardLogger(folder, name="run"))
    run.validate(Segmentation(), DataLoader(Masks(160), batch_size=16), verbose=False)
    return failures.last_report, folder / "run" / "version_0" / "failures" / "report.html"


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1600])
def test_page__of_verdicts(analysed, visit, width):
    result, path = analysed
    seen = visit(path, width=width)
    page = seen.page
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(
        "[...document.querySelectorAll('.chart')].every(c => c.dataset.drawn && c.querySelector('svg'))"
    )
    text = page.locator("body").inner_text()
    assert "undefined" not in text
    assert "None" not in text
    assert "NaN" not in text
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    headings = page.locator("#browse th")
    names = [headings.nth(k).text_content().strip() for k in range(headings.count()) if headings.nth(k).is_visible()]
    if width > 400:  # a narrow screen stacks the cells
        assert names == ["Image", "Id", "Label", "Outcome", "Decision value", "Flagged", "Leaf"]
    assert not page.locator("#browse td[data-label=Prediction]").first.is_visible()
    assert not page.locator("#browse td[data-label=Confidence]").first.is_visible()
    assert not page.locator("#filters [name=prediction]").is_visible()
    failed = set(result.table.ids[result.table.failed].tolist())
    page.locator("#filters [name=failed]").select_option("wrong")
    ids = page.evaluate("[...document.querySelectorAll('#browse tbody tr')].map(r => Number(r.cells[1].textContent))")
    assert set(ids) <= failed
    assert ids
    assert (seen.errors, seen.refused, len(seen.requested)) == ([], [], 1)


def read_score(outputs, batch):
    """Named in the YAML of the next test."""
    return read_iou(outputs, batch)


@pytest.mark.filterwarnings("ignore:``instantiate_classes`` was deprecated")
@pytest.mark.parametrize("given", [{"failed_below": 0.5}, {"data": {"failed_below": 0.5}}], ids=["shorthand", "group"])
def test_failed_below__from_yaml(tmp_path, given):
    read = "tests.end_to_end.test_trust_verdict_page.read_score"
    options = {"read_batch": read, "encoder": None, "captions": None, "pictures": False, "on_error": "raise"}
    failures = from_yaml(options | given)
    data = Masks(160)
    trainer(tmp_path, failures).validate(Segmentation(), DataLoader(data, batch_size=16), verbose=False)
    expected = callback(read_batch=read_iou, failed_below=0.5, pictures=False)
    trainer(tmp_path, expected).validate(Segmentation(), DataLoader(data, batch_size=16), verbose=False)
    assert torch.equal(failures.last_report.table.failed, expected.last_report.table.failed)
    assert 0.1 < failures.last_report.report.accuracy < 0.9
