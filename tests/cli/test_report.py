"""The commands ``report`` and ``diff``: what they print, where they write, what they return."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_failures.analysis import AnalysisResult
from lightning_failures.cli import main
from lightning_failures.cli.report import diff_text, report_text
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import ClassReport, FailureReport, FeatureReport, ModeReport
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.report.comparison import compare
from lightning_failures.report.run_folder import Run, open_run
from lightning_failures.report.transfer import transfer
from lightning_failures.writers import FileWriter
from tests.end_to_end.test_hostile import CONTROL, NAMES
from tests.helpers.results import analysed
from tests.helpers.toy import OracleClassifier, callback, loader


def report(wrong: int = 4, name: str = "cat", **options) -> AnalysisResult:
    """Twenty examples of two classes, of which some fail, the first ones of the first class."""
    ids = torch.arange(20)
    labels = (ids >= 10).long()
    guesses = torch.where(ids < wrong, 1, labels)
    values = torch.where(ids < wrong, -1.0, 1.0)
    table = ExampleTable(ids, labels, guesses, torch.ones(20), values, -1 + 0 * ids, -1 + 0 * ids, (name, "dog"))
    classes = (
        ClassReport(name, 10, accuracy=1 - wrong / 10, cv_score=0.9, cv_score_stderr=0.05, p_value=0.001, pattern=True),
        ClassReport("dog", 10, accuracy=1.0, skipped="0 failures"),
    )
    leaf = LeafReport("feature 17 > 0.36", 20, 0.8, 0.7, 0.56, True, (0.5, 0.9))
    filled = {
        "groups": (GroupReport("label", name, 10, 0.4, 0.7, 0.6, 0.1, 0.02, True, None, (leaf,)),),
        "features": (FeatureReport(17),),
        "modes": (ModeReport("cat 1", name, "growing", 0, 3, size=4, examples=10),),
        "table": table,
        "robust_encoder_fingerprint": "f",
        "epoch": 3,
        "global_step": 250,
        "stage": "fit",
    }
    return analysed(20, 1 - wrong / 20, classes, **(filled | options))


@pytest.fixture
def pages(monkeypatch):
    """What was rendered; the page itself has tests of its own."""
    shown: list[Run] = []

    def render(run):
        shown.append(run)
        return "<p>the page</p>"

    monkeypatch.setattr("lightning_failures.report.html.render.render", render)
    return shown


def saved(folder: Path, **options) -> Path:
    FileWriter(folder / "failures").write(report(**options), 250)
    return folder


def test_report__prints_and_writes_the_page(tmp_path, capsys, pages):
    place = saved(tmp_path / "run")
    assert main(["report", str(place)]) == 0
    shown = capsys.readouterr().out
    assert (place / "failures" / "report.html").read_text() == "<p>the page</p>"
    assert f"Report: {place / 'failures' / 'report.html'}" in shown
    for text in ("cat", "Pattern. Held-out examples are separated", "growing", "feature 17 > 0.36", "accuracy 80.0 %"):
        assert text in shown
    assert main(["report", str(place), "--output", str(tmp_path / "other" / "ticket.html")]) == 0
    assert (tmp_path / "other" / "ticket.html").read_text() == "<p>the page</p>"
    assert len(pages) == 2


def test_report__text_only(tmp_path, capsys, pages):
    place = saved(tmp_path)
    assert main(["report", str(place), "--text-only"]) == 0
    assert "Report:" not in capsys.readouterr().out
    assert not pages
    assert not list(tmp_path.rglob("*.html"))


def test_report__a_name_given_today_shows_in_yesterdays_run(tmp_path, capsys, pages):
    place = saved(tmp_path)
    (place / "failures" / "features.yaml").write_text("- {encoder: f, feature: 17, name: red stroke}\n")
    assert main(["report", str(place)]) == 0
    assert 'feature 17 "red stroke" > 0.36' in capsys.readouterr().out
    assert pages[0].report.features[0].name == "red stroke"
    (tmp_path / "mine.yaml").write_text("- {encoder: f, feature: 17, name: blue}\n")
    assert main(["report", str(place), "--feature-names", str(tmp_path / "mine.yaml")]) == 0
    assert 'feature 17 "blue"' in capsys.readouterr().out
    assert main(["report", str(place), "--feature-names", str(tmp_path / "lacking.yaml")]) == 1
    assert "lacking.yaml" in capsys.readouterr().err


def test_report__a_place_that_cannot_be_written(tmp_path, capsys, pages):
    place = saved(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["report", str(place), "--output", str(tmp_path / "file" / "report.html")]) == 1
    assert "--output FILE" in capsys.readouterr().err


def test_report__notes_files_that_it_cannot_read(tmp_path, capsys, pages):
    place = saved(tmp_path)
    (place / "failures" / "examples.safetensors").write_bytes(b"x" * 50)
    assert main(["report", str(place)]) == 0
    assert "examples.safetensors is left out" in capsys.readouterr().out


def test_report_text__is_bounded():
    many = tuple(
        GroupReport("label", f"class {k}", 9, pattern=True, leaves=(LeafReport(f"feature {k} > 1", 9, 1, 1, k, True),))
        for k in range(100)
    )
    text = report_text(Run(Path("x"), report(groups=many), ()))
    assert "feature 99 > 1" in text
    assert "feature 79 > 1" not in text
    assert "80 more in report.json" in text


def test_report_text__leaves_that_are_valid_held_out():
    leaves = (
        LeafReport("feature 1 > 1", 9, 0.9, 0.6, 0.54, True, (0.1, 0.5), 0.31, 0.3, False),
        LeafReport("feature 2 > 1", 9, 0.7, 0.4, 0.28, True, (0.4, 0.8), 0.62, 0.35, True),
    )
    group = GroupReport("label", "cat", 9, 0.3, pattern=True, leaves=leaves)
    text = " ".join(report_text(Run(Path("x"), report(groups=(group,)), ())).split())
    assert "feature 1 > 1" not in text
    assert (
        "feature 2 > 1: error rate 62.0 % (40.0 to 80.0 %) and error coverage 35.0 % on held-out examples; in sample"
        " 70.0 % and 40.0 %; base error rate 30.0 %" in text
    )


def test_diff__text(tmp_path, capsys):
    a, b = saved(tmp_path / "a", wrong=9), saved(tmp_path / "b", wrong=1)
    assert main(["diff", str(a), str(b), "--ids", "2"]) == 0
    shown = capsys.readouterr().out
    assert "20 examples are in both runs with the same label" in shown
    assert "Error rate 45.0 % -> 5.0 % (-40.0 points, p = 0.0078): 8 fixed, 0 new, 1 persistent failures." in shown
    changes, transferred = shown.split("The first run on the failures of the second network, 20 examples")
    rows = [line.split() for line in changes.splitlines() if line.startswith(("cat", "dog"))]
    assert "Mean AUROC where the first run found a pattern" in transferred
    assert rows == [
        ["cat", "10", "90.0", "%", "10.0", "%", "-80.0", "points", "8", "0", "1", "0.0078"],
        ["dog", "10", "0.0", "%", "0.0", "%", "+0.0", "points", "0", "0", "0", "no", "difference"],
    ]
    assert ["cat", "yes", "1", "/", "10"] in [line.split()[:5] for line in transferred.splitlines()]
    assert "persistent  cat: 9 -> 1 flagged failures (shared 100.0 %)" in shown
    assert "  1: cat, a says dog, b says cat\n  2: cat, a says dog, b says cat\n  and 6 more" in shown
    assert main(["diff", str(b), str(b)]) == 0
    shown = capsys.readouterr().out
    assert "no significant difference" in shown
    assert "Fixed" not in shown


def test_diff__json(tmp_path, capsys):
    a, b = saved(tmp_path / "a", wrong=9), saved(tmp_path / "b", wrong=1)
    assert main(["diff", str(a), str(b), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    runs = open_run(a), open_run(b)
    assert found == compare(*runs).to_dict() | {"transfer": transfer(*runs).to_dict()}
    assert [one["id"] for one in found["fixed"]] == [*range(1, 9)]
    assert main(["diff", str(a), str(b), "--json", str(tmp_path / "diff.json")]) == 0
    assert json.loads((tmp_path / "diff.json").read_text()) == found
    assert "fixed" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    assert main(["diff", str(a), str(b), "--json", str(tmp_path / "file" / "x.json")]) == 1
    assert "Could not write" in capsys.readouterr().err


def test_diff__two_epochs_of_one_run(tmp_path, capsys):
    writer = FileWriter(tmp_path / "run" / "failures")
    for epoch, wrong in ((2, 9), (3, 5), (4, 1)):
        writer.write(report(wrong=wrong, epoch=epoch, global_step=100 * epoch), 100 * epoch)
    assert main(["diff", str(tmp_path / "run"), "--epochs", "2", "4"]) == 0
    shown = capsys.readouterr().out
    assert "Error rate 45.0 % -> 5.0 % (-40.0 points, p = 0.0078): 8 fixed, 0 new, 1 persistent failures." in shown
    assert "epoch 2" in shown
    assert "epoch 4" in shown
    assert main(["diff", str(tmp_path / "run"), "--epochs", "3", "2"]) == 0
    assert "Error rate 25.0 % -> 45.0 %" in capsys.readouterr().out
    assert main(["diff", str(tmp_path / "run"), "--epochs", "2", "7"]) == 1
    assert "no analysis of epoch 7; it has analyses of: 2, 3, 4." in capsys.readouterr().err


def test_diff__runs_that_cannot_be_compared(tmp_path, capsys):
    a, b = saved(tmp_path / "a"), saved(tmp_path / "b", table=None)
    for arguments, message in (
        ([a, b], "no table of examples"),
        ([a, tmp_path / "c"], "No report.json"),
        ([a, saved(tmp_path / "d", name="other", table=replace(report().table, ids=torch.arange(20) + 90))], "common"),
    ):
        assert main(["diff", *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["report"],
        ["diff", "a"],
        ["diff", "a", "b", "--ids", "-1"],
        ["diff", "a", "b", "--epochs", "1", "2"],
        ["report", "a", "b"],
    ],
)
def test_wrong_arguments__print_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert f"usage: lightning-failures {arguments[0]}" in capsys.readouterr().err


def test_diff_text__many_classes():
    ids = torch.arange(300)
    names = tuple(f"class {k}" for k in range(100))
    columns = (ids % 100, torch.where(ids < 100, ids, (ids + 1) % 100))
    table = ExampleTable(ids, *columns, torch.ones(300), torch.ones(300), -1 + 0 * ids, -1 + 0 * ids, names)
    classes = tuple(ClassReport(name, 3) for name in names)
    run = Run(Path("x"), FailureReport(300, 0.3, classes), (), table)
    text = diff_text(compare(run, run))
    assert "60 classes with smaller changes" in text
    assert len(text.splitlines()) < 70


def test_diff_text__shows_any_name_and_interprets_none():
    names = tuple(dict.fromkeys(NAMES))
    ids = torch.arange(len(names))
    table = ExampleTable(
        ids, ids, ids.roll(1), torch.ones(len(ids)), torch.ones(len(ids)), -1 + 0 * ids, -1 + 0 * ids, names
    )
    classes = tuple(
        ClassReport(name, 1, p_value=0.001, pattern=True, hardest_captions=(name,), accuracy=0.0) for name in names
    )
    run = Run(Path("\x1b[31m"), FailureReport(9, 0.5, classes), (), table, notes=NAMES)
    text = diff_text(compare(run, replace(run, table=replace(table, predictions=ids.roll(2)))), ids=99)
    assert not CONTROL.search(text)
    assert max(map(len, text.splitlines())) < 1500
    text.encode("utf-8", "strict")


@pytest.mark.slow
def test_two_trainings__compared_from_what_they_left(tmp_path, capsys):
    """The second classifier reads the label on dark images too: failures and modes are fixed. The models are gone."""

    class Cured(OracleClassifier):
        def _guess(self, pixels):
            return 4.0 * torch.nn.functional.one_hot((pixels[:, 0, 0, 0] * 10).round().long(), 4).float()

    for name, model in (("a", OracleClassifier()), ("b", Cured())):
        logger = CSVLogger(tmp_path / name, name="", version="")
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=2, logger=logger, callbacks=[callback(pictures=True)],
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(model, loader(160, shuffle=True), loader(400, seed=1))
        del model, trainer
    shutil.move(tmp_path / "a", tmp_path / "moved")
    a = open_run(tmp_path / "moved")
    assert len(a.history) == 2
    assert {path.suffix for path in tmp_path.rglob("*")} >= {".html", ".json"}
    assert not list(tmp_path.rglob("*.ckpt"))

    assert main(["diff", str(tmp_path / "moved"), str(tmp_path / "b"), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    failed = {int(i) for i in a.table.ids[a.table.failed]}
    assert len(failed) > 50
    assert {one["id"] for one in found["fixed"]} == failed
    assert found["new"] == found["persistent"] == []
    assert all(entry["different"] and entry["error_rate_b"] == 0 for entry in found["classes"])
    assert {mode["fate"] for mode in found["modes"]} == {"gone"}
    assert len(found["modes"]) == sum(entry.pattern for entry in a.report.classes) > 0

    assert main(["report", str(tmp_path / "moved"), "--output", str(tmp_path / "ticket.html")]) == 0
    page = (tmp_path / "ticket.html").read_text()
    assert re.search("class 2", page)
    assert "<script" in page
