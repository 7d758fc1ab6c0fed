"""Files of images to label, read back as the tools read them."""

from __future__ import annotations

import csv
import json
from urllib.parse import parse_qs, urlsplit

from lightning_failures.writers.labelling import (
    FIFTYONE_FILE,
    LABEL_STUDIO_FILE,
    ImageToLabel,
    fiftyone_samples,
    label_studio_tasks,
    write_labelling_files,
)

IMAGES = [
    ImageToLabel(
        3, "owl", "/pool/an owl & ü#1.png", is_guess=True, decision_value=-0.5, caption="a photo of a night owl"
    ),
    ImageToLabel(5, '=HYPERLINK("x")', "s3://bucket/5.png", decision_value=-0.25),
    ImageToLabel(8, "line\nbreak", None),
]


def test_files__are_written_and_read_back(tmp_path):
    paths = write_labelling_files(IMAGES, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == ["images.csv", LABEL_STUDIO_FILE, FIFTYONE_FILE]
    with paths[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["3", "5", "8"]
    assert [row["path"] for row in rows] == [IMAGES[0].path, IMAGES[1].path, ""]
    assert rows[1]["class"] == """'=HYPERLINK("x")"""
    assert rows[2]["class"] == "line\nbreak"
    assert json.loads(paths[1].read_text()) == label_studio_tasks(IMAGES)
    assert json.loads(paths[2].read_text()) == fiftyone_samples(IMAGES)


def test_label_studio__tasks_have_an_image_and_the_class_as_a_prediction():
    local, remote = label_studio_tasks(IMAGES)
    address = urlsplit(local["data"]["image"])
    assert address.path == "/data/local-files/"
    assert parse_qs(address.query) == {"d": ["pool/an owl & ü#1.png"]}
    assert remote["data"]["image"] == "s3://bucket/5.png"
    for task, image in zip((local, remote), IMAGES, strict=False):
        assert task["data"].keys() >= {"image", "pool_id", "guess", "decision_value"}
        (prediction,) = task["predictions"]
        (result,) = prediction["result"]
        assert (result["type"], result["to_name"]) == ("choices", "image")
        assert result["value"] == {"choices": [image.class_name]}


def test_fiftyone__samples_are_those_of_its_serialised_datasets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = fiftyone_samples([*IMAGES, ImageToLabel(9, "owl", "in/the folder.png")])
    assert list(content) == ["samples"]
    assert [sample["filepath"] for sample in content["samples"]] == [
        "/pool/an owl & ü#1.png",
        "s3://bucket/5.png",
        str(tmp_path / "in" / "the folder.png"),
    ]
    for sample in content["samples"]:
        assert sample["suggested"]["_cls"] == "Classification"
        assert isinstance(sample["tags"], list)


def test_files__of_a_dataset_without_files_are_a_table_only(tmp_path):
    (path,) = write_labelling_files([ImageToLabel(1, "owl")], tmp_path)
    assert path.name == "images.csv"
    assert [one.name for one in tmp_path.iterdir()] == ["images.csv"]


def test_files__surrogates_in_names_do_no_harm(tmp_path):
    write_labelling_files([ImageToLabel(1, "owl\udcff", "/pool/\udcff.png")], tmp_path)
    assert b"owl" in (tmp_path / "images.csv").read_bytes()
