"""Every number of the page of a real run is the one in its files, and so are the data of its charts."""

from __future__ import annotations

import json
import time

import pytest
import torch

from lightning_failures.callback import AdvancedOptions, FailureModes
from lightning_failures.report.run_folder import HTML_FILE
from tests.helpers.toy import ColourEncoder, OracleClassifier, loader, trainer
from tests.report.html.reading import documents, wrong_numbers
from tests.report.html.words import page_flaws, text_flaws

pytest_plugins = ["tests.helpers.browser"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


class WordedEncoder(ColourEncoder):
    """An encoder of colours that also has a direction for each text, so that classes get captions and a curve."""

    def encode_texts(self, texts):
        rows = [torch.randn(self.dim, generator=torch.Generator().manual_seed(len(text))) for text in texts]
        return torch.stack(rows)


class Unhurried(OracleClassifier):
    """Pictures may take as long as an epoch: this one has time for them."""

    def training_step(self, batch, batch_idx):
        time.sleep(0.4)
        return super().training_step(batch, batch_idx)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two epochs, analysed twice, with pictures, trees and captions."""
    place = tmp_path_factory.mktemp("run")
    modes = FailureModes(
        class_names=["ash", "birch", "cedar", "date"],
        encoder=WordedEncoder(),
        robust_encoder=ColourEncoder("robust"),
        on_error="raise",
        advanced=AdvancedOptions(permutations=99),
    )
    fit = trainer(place, modes, max_epochs=2)
    fit.fit(Unhurried(), loader(160, shuffle=True), loader(800, seed=1))
    return next(place.rglob(HTML_FILE)).parent


def test_numbers__are_those_of_the_files(visit, folder):
    known = documents(folder)
    seen = visit(folder / HTML_FILE)
    page = seen.page
    page.locator("#pager select").select_option("100")
    found = page.evaluate("[...document.querySelectorAll('data')].map(d => [d.textContent, d.value, d.dataset.of])")
    for _ in range(8):  # all pages of the table
        button = page.get_by_role("button", name="Next")
        if button.is_disabled():
            break
        button.click()
        found += page.evaluate(
            "[...document.querySelectorAll('#browse data')].map(d => [d.textContent, d.value, d.dataset.of])"
        )
    assert wrong_numbers(found, known) == []
    kinds = {of.split("/")[1] if of.startswith("report/") else of.split("/")[0] for _, _, of in found}
    assert {"classes", "groups", "accuracy", "examples", "1 - report"} <= kinds
    assert len(found) > 500
    assert seen.errors == []


def test_words__numbers_in_sentences_are_those_of_the_files(visit, folder):
    known = documents(folder)
    report, before = known["report"], known["history"][-2]
    page = visit(folder / HTML_FILE).page
    assert page_flaws(page, report, before) == []
    text = max(folder.glob("epoch=*")).joinpath("report.md").read_text()
    assert text_flaws(text, report, before) == []
    # a changed number is found
    rate = report["classes"][0]["flagged_error_rate"]
    changed = text.replace(f"{100 * rate:.1f} %", f"{100 * rate + 0.3:.1f} %")
    assert text_flaws(changed, report, before)
    page.evaluate("document.querySelector('.card .say').append(' 12.34 %')")
    assert [one.split(":")[1].split()[0] for one in page_flaws(page, report, before)] == ["12.34"]


def test_numbers__of_each_class_are_shown(visit, folder):
    report = documents(folder)["report"]
    page = visit(folder / HTML_FILE).page
    paths = set(page.evaluate("[...document.querySelectorAll('data')].map(d => d.dataset.of)"))
    for index, entry in enumerate(report["classes"]):
        wanted = {"cv_score", "cv_score_stderr", "p_value", "flagged", "agreement"}
        at = f"report/classes/{index}"
        assert {f"{at}/{name}" for name in wanted if entry[name] is not None} <= paths
        assert f"1 - {at}/accuracy" in paths
        if entry["aler"] is not None:
            assert f"{at}/aler - {at}/base_error_rate" in paths
    assert page.get_by_text("in sample").count()
    for index, group in enumerate(report["groups"]):
        if group["heldout_aler_minus_ber"] is not None:
            assert f"report/groups/{index}/heldout_aler_minus_ber" in paths


def test_charts__data_are_those_of_the_files(visit, folder):
    known = documents(folder)
    report = known["report"]
    data = json.loads(visit(folder / HTML_FILE).page.locator("#data").text_content())
    charts = data["charts"]
    points = charts["scatter"]["data"]["values"]
    judged = [i for i, group in enumerate(report["groups"]) if group["heldout_aler_minus_ber"] is not None]
    assert [point["group"] for point in points] == judged
    for point in points:
        group = report["groups"][point["group"]]
        values = point["base"], point["gain"], point["heldout"], point["size"]
        rate = group["base_error_rate"]
        assert values == (rate, group["aler"] - rate, group["heldout_aler_minus_ber"], group["size"])
    curves = data["class_rows"]["curve"]
    assert curves
    for index, rows in curves.items():
        nearest = report["classes"][int(index)]["nearest"]
        assert rows == [
            {"k": point["k"], "end": end, "accuracy": point[end]}
            for end in ("hardest", "easiest")
            for point in nearest
            if point[end] is not None
        ]
    diary = charts["diary"]
    assert diary["data"]["values"]
    for row in diary["data"]["values"]:
        mode = known["history"][row["analysis"]]["modes"][row["place"]]
        assert (row["size"], row["status"]) == (mode["size"], mode["status"])
