"""Exports of a run, read back as the tools read them; with the tools themselves where they are installed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.run_folder import open_run
from lightning_failures.writers.export import FORMATS, Exported, export_run, files_below
from tests.helpers.exported import image_folder, saved_run


def exported(folder: Path, to: str, *, files: bool = False, thumbnails: int = 0, **options) -> Exported:
    dataset = image_folder(folder / "data") if files else None
    run = open_run(saved_run(folder / "run", dataset, thumbnails=thumbnails))
    return export_run(run, folder / "out", to, **options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv__four_tables(tmp_path):
    result = exported(tmp_path, "csv")
    assert [path.name for path in result.files] == ["examples.csv", "suspects.csv", "slices.csv", "pins.csv"]
    examples = rows(result.files[0])
    assert [row["id"] for row in examples] == [str(k) for k in range(8, 15)]
    assert examples[0]["label"] == "'=cat"  # no spreadsheet evaluates it
    assert examples[4]["suspect"] == "True"
    assert rows(result.files[1])[1]["label"] == "'=cat"
    assert rows(result.files[2])[0]["class"] == "owl"


def test_json__holds_everything(tmp_path):
    (path,) = exported(tmp_path, "json", every_example=True).files
    data = json.loads(path.read_text())
    assert (data["schema"], data["epoch"], data["class_names"]) == (1, 2, ["=cat", "owl"])
    assert [len(data[key]) for key in ("examples", "suspects", "slices", "pins")] == [20, 2, 4, 0]
    assert data["slices"][0]["class"] == "owl"


def test_cleanlab__a_row_for_each_example(tmp_path):
    (path,) = exported(tmp_path, "cleanlab").files
    found = rows(path)
    assert len(found) == 20
    assert [row["id"] for row in found if row["is_label_issue"] == "True"] == ["12"]
    assert (found[12]["label_score"], found[12]["given_label"], found[12]["predicted_label"]) == (
        "0.25",
        "owl",
        "'=cat",
    )


@pytest.mark.parametrize("to", ["fiftyone", "label-studio"])
def test_images__are_the_files_of_the_dataset(tmp_path, to):
    result = exported(tmp_path, to, files=True, images=tmp_path / "data")
    assert (result.shown, result.thumbnails) == (7, 0)
    content = json.loads(next(path for path in result.files if path.suffix == ".json").read_text())
    first = content["samples"][0] if to == "fiftyone" else content[0]
    path = str(tmp_path / "data" / "owl" / "12.png")  # the doubted label comes first
    if to == "fiftyone":
        assert first["filepath"] == path
        assert first["tags"] == ["lightning_failures", "failed", "flagged", "suspect"]
        assert [first[key]["label"] for key in ("ground_truth", "prediction")] == ["owl", "=cat"]
    else:
        assert first["data"]["image"] == f"/data/local-files/?d={path[1:]}"
        assert [one["result"][0]["value"]["choices"] for one in first["predictions"]] == [["owl"], ["=cat"]]
        choices = ElementTree.parse(tmp_path / "out" / "label_studio.xml").iter("Choice")
        assert [choice.get("value") for choice in choices] == ["=cat", "owl"]


def test_images__thumbnails_stand_for_missing_files(tmp_path):
    result = exported(tmp_path, "fiftyone", thumbnails=3)
    assert (result.shown, result.thumbnails, len(result.findings.examples)) == (3, 3, 7)
    samples = json.loads((tmp_path / "out" / "fiftyone" / "samples.json").read_text())["samples"]
    assert [sample["example_id"] for sample in samples] == [12, 11, 10]
    with Image.open(tmp_path / "out" / "fiftyone" / samples[0]["filepath"]) as image:
        assert np.asarray(image)[0, 0].tolist() == [12, 12, 12]
    tasks = exported(tmp_path / "other", "label-studio", thumbnails=3).files[1]
    assert all(task["data"]["image"].startswith("data:image/png;base64,") for task in json.loads(tasks.read_text()))


@pytest.mark.parametrize("to", ["fiftyone", "label-studio"])
def test_images__without_any_the_remedy_is_named(tmp_path, to):
    with pytest.raises(DataError, match="--images FOLDER"):
        exported(tmp_path, to)


def test_images__wrong_folders_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match="is no folder"):
        exported(tmp_path, "csv", images=tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="does not know the names of its files"):
        exported(tmp_path, "csv", images=tmp_path)
    with pytest.raises(ConfigurationError, match="holds none of the files of the run"):
        exported(tmp_path, "csv", files=True, images=tmp_path / "data" / "owl")
    with pytest.raises(ConfigurationError, match="one of csv, json, fiftyone, label-studio, cleanlab"):
        exported(tmp_path, "excel")


def test_files_below__are_found_wherever_the_folder_is(tmp_path):
    image_folder(tmp_path / "a")
    image_folder(tmp_path / "b" / "c")
    assert list(files_below(tmp_path / "a")) == list(files_below(tmp_path / "b" / "c"))
    assert len(files_below(tmp_path)) == 40


# -- the tools themselves --------------------------------------------------------------------------------------------


def test_label_studio__accepts_configuration_and_tasks(tmp_path):
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    exported(tmp_path, "label-studio", files=True, images=tmp_path / "data")
    project = interface.LabelInterface((tmp_path / "out" / "label_studio.xml").read_text())
    project.validate()
    for task in json.loads((tmp_path / "out" / "label_studio.json").read_text()):
        predictions = task.pop("predictions")
        assert project.validate_task(task)
        assert [project.validate_prediction(one, return_errors=True) for one in predictions] == [[], []]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_cleanlab__has_the_same_columns(tmp_path):
    datalab = pytest.importorskip("cleanlab.datalab.datalab")
    (path,) = exported(tmp_path, "cleanlab").files
    found = rows(path)
    labels = [int(row["given_label"] == "owl") for row in found]
    confidence = np.array([float(row["label_score"]) for row in found])
    probabilities = np.stack([confidence, 1 - confidence], 1)
    probabilities[np.array(labels) == 1] = probabilities[np.array(labels) == 1, ::-1]
    lab = datalab.Datalab({"y": labels}, label_name="y", verbosity=0)
    lab.find_issues(pred_probs=probabilities, issue_types={"label": {}})
    theirs = lab.get_issues("label")
    assert set(theirs.columns) <= set(found[0])
    assert [int(row["predicted_label"] == "owl") for row in found] == theirs["predicted_label"].tolist()
    np.testing.assert_allclose(confidence, theirs["label_score"], atol=1e-6)  # their default is the self-confidence


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_fiftyone__reads_the_samples(tmp_path, monkeypatch):
    """By the importer that ``Dataset.from_dir`` takes for this format, which needs no database."""
    monkeypatch.setenv("FIFTYONE_DISABLE_SERVICES", "1")
    data = pytest.importorskip("fiftyone.utils.data")
    exported(tmp_path, "fiftyone", files=True, images=tmp_path / "data")
    with data.LegacyFiftyOneDatasetImporter(str(tmp_path / "out" / "fiftyone")) as importer:
        samples = list(importer)
    assert len(samples) == 7
    assert samples[0].ground_truth.label == "owl"
    assert samples[0].filepath == str(tmp_path / "data" / "owl" / "12.png")
    assert [sample.example_id for sample in samples if "suspect" in sample.tags] == [12]


def test_formats__are_all_tested():
    assert set(FORMATS) == {"csv", "json", "fiftyone", "label-studio", "cleanlab"}
