"""Runs read back from disk: where they are found, what a history holds, what damage does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from lightning_failures.analysis import AnalysisResult
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import ClassReport, FeatureReport, ModeReport, analysis_name
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.directions import FailureDirections
from lightning_failures.directions.result import without_effects
from lightning_failures.errors import ConfigurationError
from lightning_failures.report import run_folder as runs
from lightning_failures.report.gallery import Gallery, Picture, Row, Thumbnails, Tile
from lightning_failures.report.gallery_storage import save_gallery
from lightning_failures.report.run_folder import find_report, open_run, report_before
from lightning_failures.writers import FileWriter, write_report
from tests.helpers.results import analysed

LEAF = LeafReport("feature 17 > 0.36", 20, 0.8, 0.7, 0.56, True, (0.5, 0.9))


def table() -> ExampleTable:
    column = torch.arange(4)
    values = torch.tensor([-0.5, 0.5, float("nan"), 0.1])
    return ExampleTable(column, column % 2, column // 2, values.abs().nan_to_num(), values, column, column, ("a", "b"))


def report(epoch: int = 2, **options) -> AnalysisResult:
    entry = ClassReport(
        "cat", 40, accuracy=0.5 + epoch / 10, cv_score=0.9, pattern=True, hardest_captions=("x",), hardest_ids=(1,)
    )
    filled = {
        "groups": (GroupReport("label", "cat", 40, leaves=(LEAF,)),),
        "features": (FeatureReport(17, name="old"), FeatureReport(3, name="kept")),
        "modes": (ModeReport("cat 1", "cat", "new"),),
        "summary": {"cv_score_mean": 0.9},
        "robust_encoder_fingerprint": "f",
        "epoch": epoch,
        "global_step": 100 * epoch,
        "stage": "fit",
    }
    return analysed(40, 0.5, (entry,), **(filled | options))


@pytest.fixture
def folder(tmp_path):
    """A run of three analyses and a test, as the callback leaves it; the last report is that of the training."""
    sink = FileWriter(tmp_path / "version_0" / "failures")
    numbers = [torch.ones(size) for size in (1, 1, 1, 1, 1, 3, 3, 4)]
    fitted = FailureDirections(torch.tensor([0]), torch.ones(1, 3), *numbers, **without_effects(1, 4))
    for one in (report(0), report(1), report(1, stage="test"), report(2, table=table(), directions=fitted)):
        sink.write(one, one.global_step)
    return sink.folder


def test_open_run__everything(folder):
    picture = Picture("classes/cat", (Row("", (Tile(torch.zeros(3, 4, 4, dtype=torch.uint8)),)),))
    save_gallery(Gallery((picture,), epoch=2, global_step=200), folder / "gallery.json")
    run = open_run(folder)
    assert run.folder == folder
    assert run.report == report(2).report
    assert [one.epoch for one in run.history] == [0, 1, 2]
    assert run.history[-1] is run.report
    assert run.table.values.tolist()[:2] == [-0.5, 0.5]
    assert len(run.directions.classes) == 1
    assert run.gallery.pictures[0].tag == "classes/cat"
    assert run.notes == ()


@pytest.mark.parametrize(("epoch", "step"), [(1, 100), (1, 200), (2, 250), (None, None)])
def test_open_run__pictures_of_another_analysis_are_left_out_but_not_the_examples(folder, epoch, step):
    picture = Picture("classes/cat", (Row("", (Tile(torch.zeros(3, 4, 4, dtype=torch.uint8)),)),))
    seen = Thumbnails(torch.tensor([1]), torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    save_gallery(Gallery((picture,), seen, epoch, step), folder / "gallery.json")
    run = open_run(folder)
    assert (run.gallery.pictures, run.gallery.thumbnails.ids.tolist()) == ((), [1])
    place = "another analysis" if epoch is None else f"epoch {epoch} (step {step})"
    assert run.notes == (f"The pictures on disk are of {place}, not of this report, and are left out.",)
    save_gallery(Gallery((), seen, epoch, step), folder / "gallery.json")
    assert open_run(folder).notes == ()


def test_open_run__a_history_has_numbers_and_the_diary(folder):
    first = open_run(folder).history[0]
    assert first.classes == (ClassReport("cat", 40, accuracy=0.5, cv_score=0.9, pattern=True),)
    assert (first.modes, first.summary) == (report(0).modes, report(0).summary)
    assert (first.groups, first.features) == ((), ())


def test_open_run__of_a_test(folder):
    write_report(report(1, stage="test"), folder)
    assert [(one.epoch, one.stage) for one in open_run(folder).history] == [(1, "test")]


def test_open_run__one_analysis_of_a_run(folder):
    """Tables and pictures beside the last report are not its own."""
    save_gallery(Gallery(epoch=2, global_step=200), folder / "gallery.json")
    earlier = open_run(folder / analysis_name(report(1), 100) / "report.json")
    assert (earlier.folder, earlier.report.epoch) == (folder, 1)
    assert [one.epoch for one in earlier.history] == [0, 1]
    assert (earlier.table, earlier.directions, earlier.gallery) == (None, None, None)
    last = open_run(folder / analysis_name(report(2), 200))
    assert last.table is not None
    assert last.gallery is not None


@pytest.mark.parametrize("epoch", [0, 3])
def test_open_run__a_validation_after_fit_has_the_whole_training_before_it(folder, epoch):
    """It is made at the step of the last analysis of fit."""
    single = report(epoch, stage="validate", modes=(), global_step=200)
    FileWriter(folder).write(single, 200)
    history = open_run(folder).history
    assert [(one.epoch, one.stage) for one in history] == [*((e, "fit") for e in range(3)), (epoch, "validate")]
    assert history[2].modes
    assert report_before(folder, single, 200).epoch == 2
    write_report(report(2), folder)
    assert [one.epoch for one in open_run(folder).history if one.stage == "fit"] == [0, 1, 2]


def test_open_run__epochs_count_where_steps_stand_still(tmp_path):
    """As in manual optimisation."""
    for epoch in range(3):
        FileWriter(tmp_path).write(report(epoch, global_step=0), 0)
    assert [one.epoch for one in open_run(tmp_path).history] == [0, 1, 2]
    assert report_before(tmp_path, report(2, global_step=0), 0).epoch == 1
    write_report(report(1, global_step=0), tmp_path)
    assert [one.epoch for one in open_run(tmp_path).history] == [0, 1]


def test_open_run__leaves_out_a_future_that_was_abandoned(folder):
    write_report(report(1), folder)  # resumed from the first epoch
    assert [one.epoch for one in open_run(folder).history] == [0, 1]


def test_open_run__another_loader_is_no_history(folder):
    write_report(report(0, dataloader=1), folder / analysis_name(report(0), 0))
    assert [one.epoch for one in open_run(folder).history] == [1, 2]


def test_open_run__a_report_alone(folder, tmp_path):
    shutil.copy(folder / "report.json", tmp_path / "attached.json")
    run = open_run(tmp_path / "attached.json")
    assert run.history == (run.report,)
    assert (run.table, run.gallery, run.directions) == (None, None, None)


def test_open_run__long_histories_are_thinned(folder, monkeypatch):
    for epoch in range(3, 60):
        write_report(report(epoch), folder / analysis_name(report(epoch), 100 * epoch))
    write_report(report(60), folder)
    monkeypatch.setattr(runs, "MAX_ANALYSES", 20)
    run = open_run(folder)
    epochs = [one.epoch for one in run.history]
    assert epochs[-6:] == [55, 56, 57, 58, 59, 60]
    assert epochs[:3] == [0, 4, 8]
    assert run.notes == (f"The history shows {len(epochs)} of 61 analyses.",)
    monkeypatch.setattr(runs, "MAX_HISTORY_BYTES", 10 * (folder / "report.json").stat().st_size)
    assert 5 <= len(open_run(folder).history) <= 11


def test_open_run__damage_is_noted_and_the_rest_is_read(folder):
    (folder / analysis_name(report(0), 0) / "report.json").write_text('{"classes": 3}')
    for name in ("examples.safetensors", "directions.safetensors", "gallery.json"):
        (folder / name).write_bytes(b"\0" * 40)
    (folder / "features.yaml").write_text("- encoder: [")
    run = open_run(folder)
    assert [one.epoch for one in run.history] == [1, 2]
    assert (run.table, run.directions, run.gallery) == (None, None, None)
    text = " ".join(run.notes)
    assert len(run.notes) == 5
    for word in ("1 of the reports", "examples.safetensors", "directions.safetensors", "gallery.json", "features.yaml"):
        assert word in text


def test_open_run__too_large_a_report(folder, monkeypatch):
    monkeypatch.setattr(runs, "MAX_REPORT_BYTES", 100)
    with pytest.raises(ConfigurationError, match="too large"):
        open_run(folder)


def test_open_run__features_have_the_names_of_today(folder, tmp_path):
    (folder / "features.yaml").write_text("- {encoder: f, feature: 17, name: red stroke, tag: spurious}\n")
    assert open_run(folder).report.features == (
        FeatureReport(17, name="red stroke", tag="spurious"),
        FeatureReport(3, name="kept"),
    )
    mine = tmp_path / "mine.yaml"
    mine.write_text("- {encoder: f, feature: 17, name:}\n- {encoder: another, feature: 3, name: x}\n")
    assert [one.name for one in open_run(folder, feature_names=mine).report.features] == [None, "kept"]
    with pytest.raises(ConfigurationError, match=r"file .*lacking.* does not exist"):
        open_run(folder, feature_names=tmp_path / "lacking.yaml")
    mine.write_text("- 3")
    with pytest.raises(ConfigurationError, match="entry 1"):
        open_run(folder, feature_names=mine)


def test_find_report__of_folders(folder, tmp_path):
    found = folder / "report.json"
    for place in (found, folder, folder.parent, tmp_path):
        assert find_report(place) == found
    shutil.copy(found, tmp_path / "report.json")  # as the demo leaves one
    assert find_report(tmp_path) == found
    write_report(report(9), tmp_path)  # not a copy
    assert find_report(tmp_path) == tmp_path / "report.json"


def test_find_report__of_a_logger_without_a_folder_of_its_own(tmp_path):
    place = tmp_path / "failures" / "project" / "4f3a"
    write_report(report(), place)
    for folder in (tmp_path, tmp_path / "failures", place):
        assert find_report(folder) == place / "report.json"


def test_find_report__none_or_several(folder, tmp_path):
    with pytest.raises(ConfigurationError, match="A run writes"):
        find_report(tmp_path / "nowhere")
    shutil.copytree(folder.parent, tmp_path / "version_1")
    with pytest.raises(ConfigurationError, match=r"(?s)2 runs below this folder; name one:.*version_0.*version_1"):
        find_report(tmp_path)


def test_report_before__is_the_one_before(folder):
    assert report_before(folder, report(2), 200).epoch == 1
    assert report_before(folder, report(0), 0) is None
    (folder / analysis_name(report(1), 100) / "report.json").write_text("{")
    assert report_before(folder, report(2), 200) is None


def test_report_md__tells_the_change_since_the_analysis_before(folder):
    assert "change" not in (folder / analysis_name(report(0), 0) / "report.md").read_text()
    text = (folder / analysis_name(report(2), 200) / "report.md").read_text()
    assert "-10.0 points" in text  # of the error rate, from 0.4 to 0.3


def test_file_sink__a_failing_page_loses_nothing_else(folder, monkeypatch):
    def broken(run):
        raise RuntimeError("no page")

    monkeypatch.setattr("lightning_failures.report.html.render.render", broken)
    shown = report(2, features=(FeatureReport(5), FeatureReport(3, name="kept")))
    picture = Picture("classes/cat", (Row("", (Tile(torch.zeros(3, 4, 4, dtype=torch.uint8)),)),))
    with pytest.raises(RuntimeError, match="no page"):
        FileWriter(folder).show(shown, Gallery((picture,), epoch=2, global_step=200), 200)
    assert open_run(folder).report.features == shown.features
    assert len(open_run(folder).gallery.pictures) == 1
    assert list((folder / analysis_name(report(2), 200) / "images").iterdir())
    assert "feature: 5" in (folder / "features.yaml").read_text()
    assert "feature: 3" not in (folder / "features.yaml").read_text()  # it has a name, wherever that is from


def test_file_sink__a_damaged_file_of_names_does_not_stop_the_page(folder, monkeypatch):
    monkeypatch.setattr(
        "lightning_failures.report.html.render.render", lambda run: f"<p>{run.report.epoch}, {len(run.notes)}</p>"
    )
    (folder / "features.yaml").write_text("- 3")
    with pytest.raises(ConfigurationError, match=r"features\.yaml"):
        FileWriter(folder).show(report(2, features=(FeatureReport(5),)), Gallery(), 200)
    assert (folder / "report.html").read_text() == "<p>2, 1</p>"
    assert json.loads((folder / "report.json").read_text())["features"]


def test_file_sink__names_in_a_file_of_the_user(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_failures.report.html.render.render", lambda run: str([one.name for one in run.report.features])
    )
    mine = tmp_path / "mine.yaml"
    mine.write_text("- {encoder: f, feature: 17, name: red stroke}\n")
    FileWriter(folder, mine).show(report(2, features=(FeatureReport(17), FeatureReport(5))), Gallery(), 200)
    assert (folder / "report.html").read_text() == "['red stroke', None]"
    assert "feature: 5" in mine.read_text()
    assert not (folder / "features.yaml").exists()


def test_report__names_do_not_touch_other_records(folder):
    (folder / "features.yaml").write_text("- {encoder: f, feature: 17, name: x}\n")
    found = open_run(folder).report
    assert replace(found, features=report(2).features) == report(2).report
