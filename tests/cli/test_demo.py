"""The demo: what it prints and writes, and the truth that it attaches."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_failures.bundled.digits import ColouredDigitsDataModule
from lightning_failures.cli import main
from lightning_failures.cli.demo import attach_truth
from lightning_failures.data.report import ClassReport, FailureReport
from tests.report.html.reading import documents, first_screen, flaws, wrong_numbers
from tests.report.html.words import page_flaws, text_flaws

pytest_plugins = ["tests.helpers.browser"]


def test_attach_truth__changes_nothing_else():
    report = FailureReport(2, 0.5, (ClassReport("a", 1), ClassReport("b", 1)))
    truth = [{"usual_tint": "red", "unusual_tint": "blue"}, None]
    with_truth = attach_truth(report, truth)
    assert [entry["truth"] for entry in with_truth["classes"]] == truth
    without = [entry | {"truth": None} for entry in with_truth["classes"]]
    assert without == report["classes"]


def test_demo__too_few_epochs_is_one_line(capsys):
    assert main(["demo", "--epochs", "0"]) == 1
    assert capsys.readouterr().err == "lightning-failures: demo: epochs must be at least 1, got 0.\n"


def tensorboard_texts(folder: Path) -> list[str]:
    """The texts of the last analysis in TensorBoard's event file."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    tags = [tag for tag in events.Tags()["tensors"] if tag.endswith("/text_summary")]
    return [events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags]


@pytest.mark.slow
def test_demo__table_report_and_truth(visit, tmp_path, capsys, monkeypatch):
    """On half of the images; ``.ci/run`` runs the whole demo."""
    half = partial(ColouredDigitsDataModule, train_size=2000, val_size=2000)
    monkeypatch.setattr("lightning_failures.cli.demo.ColouredDigitsDataModule", half)
    assert main(["demo", "--output", str(tmp_path / "out"), "--epochs", "3", "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "hardest caption" in shown
    assert re.search(r"tensorboard --logdir \S*out", shown)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["epoch"] == 2
    assert f"Report:       {tmp_path / 'out' / 'report.html'}" in shown
    (run,) = (tmp_path / "out").rglob("failures")
    page = (tmp_path / "out" / "report.html").read_bytes()
    assert (run / "report.html").read_bytes() == page
    assert len(page) < 5_000_000
    assert json.loads((run / "report.json").read_text()) == report
    planted = [entry for entry in report["classes"] if entry["truth"]]
    assert len(planted) == 8
    hits = [entry["truth"]["unusual_tint"] in " ".join(entry["hardest_captions"][:1]) for entry in planted]
    assert sum(hits) >= 4
    enriched = [
        row["value"] == entry["truth"]["unusual_tint"] and row["share_of_flagged_interval"][0] > row["share"]
        for entry in planted
        for row in entry["enrichment"]
        if row["attribute"] == "tint"
    ]
    assert sum(enriched) >= 4
    assert re.search(r"tint = \w+: \d+\.\d %", shown)
    assert report["findings"][0]["attribute"] == "tint"
    assert "with tint" in shown
    seen = visit(tmp_path / "out" / "report.html", width=1280, height=800)
    first = first_screen(seen.page)
    text = " ".join(first["text"].split())
    assert min(first["wrong"], first["right"], first["rates"]) >= 3
    worst = report["findings"][0]["parts"][0]
    assert f"Images of {worst['class']} with tint {worst['words']} are wrong" in text
    assert re.search("Mistaken for: .*How sure|How sure (high|moderate|low)", text)
    assert "Next:" in text
    # every number in every sentence and table, wherever people read it
    known = documents(run)
    before = known["history"][-2]
    marked = "[...document.querySelectorAll('data')].map(d => [d.textContent, d.value, d.dataset.of])"
    assert wrong_numbers(seen.page.evaluate(marked), known) == []
    assert page_flaws(seen.page, report, before) == []
    ours = "\n".join(line for line in shown.splitlines() if "v_num:" not in line)  # the Trainer's own progress
    assert text_flaws(ours, report, before) == []
    for text in (max(run.glob("epoch=*")).joinpath("report.md").read_text(), *tensorboard_texts(run.parent)):
        assert text_flaws(text, report, before) == []
    assert flaws(seen.page) == []
    assert seen.errors == []
    assert list((tmp_path / "out").rglob("images/classes-*.png"))
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == page
    assert main(["diff", str(tmp_path / "out"), str(run)]) == 0
    assert "0 fixed, 0 new" in capsys.readouterr().out
