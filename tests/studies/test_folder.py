"""Studies from the files of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_failures.data.report import ClassReport, FeatureReport
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.gallery import Gallery, Picture, Row, Thumbnails, Tile
from lightning_failures.report.run_folder import Run, open_run
from lightning_failures.sparse import fit_sparse_layer
from lightning_failures.studies.folder import make_study
from lightning_failures.writers.export import files_below
from tests.helpers.exported import image_folder, saved_run
from tests.helpers.results import analysed

N, D, K = 120, 12, 3


def tile(value: int) -> Tile:
    return Tile(torch.full((3, 8, 8), value, dtype=torch.uint8), id=value)


def run(folder: Path) -> Run:
    """A run with thumbnails of all examples and pictures of two features."""
    features = (FeatureReport(3, ("label/cat", "prediction/dog")), FeatureReport(5, ("label/dog",)), FeatureReport(7))
    classes = (ClassReport("cat", 10, accuracy=0.5), ClassReport("dog", 10, accuracy=0.9))
    report = analysed(N, 0.7, classes, features=features).report
    pictures = tuple(
        Picture(f"features/{k}", (Row("secret caption", (tile(k), tile(k + 1))), Row("where it is active", (tile(9),))))
        for k in (3, 5)
    )
    ids = torch.arange(N)
    images = (ids % 250).to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    return Run(folder, report, (report,), gallery=Gallery(pictures, Thumbnails(ids, images)))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A sparse layer and a file of features, with a dense layer for comparison."""
    folder = tmp_path_factory.mktemp("layer")
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % K
    features = torch.randn(N, D, generator=generator).abs()
    features[torch.arange(N), labels] += 1.0
    layer = fit_sparse_layer(features, labels, n_lambdas=10)
    layer.save(folder / "layer.safetensors")
    dense = torch.randn(K, D, generator=generator)
    tensors = {"features": features, "labels": labels, "ids": torch.arange(N)}
    save_file(tensors | {"dense_weight": dense, "dense_bias": torch.zeros(K)}, folder / "features.safetensors")
    save_file(tensors | {"features": features[:, :5].contiguous()}, folder / "other.safetensors")
    save_file({"features": features}, folder / "lacking.safetensors")
    return {name: folder / f"{name}.safetensors" for name in ("layer", "features", "other", "lacking")}


def test_simulate__sparse_and_dense(tmp_path, files):
    study = make_study(run(tmp_path), "simulate", layer=files["layer"], features=files["features"], count=4, controls=2)
    conditions = [question.condition for question in study.questions if not question.control]
    assert sorted(conditions) == ["dense"] * 4 + ["sparse"] * 4
    assert sum(question.control for question in study.questions) == 2
    assert study.questions[0].panels[0].images[0].startswith("data:image/")


def test_match__errors_of_the_sparse_layer(tmp_path, files):
    study = make_study(run(tmp_path), "match", layer=files["layer"], features=files["features"], count=3, controls=0)
    assert len(study.questions) == 3
    assert all(len(question.choices) == 3 for question in study.questions)


def test_describe__features_of_each_class(tmp_path):
    study = make_study(run(tmp_path), "describe", controls=0)
    assert sorted(question.id for question in study.questions) == ["cat/feature 3", "dog/feature 3", "dog/feature 5"]
    titles = {panel.title for question in study.questions for panel in question.panels}
    assert titles == {"images", "heat maps"}  # not the captions of the pictures
    assert len(study.questions[0].panels[0].images) == 2


def test_images__of_the_dataset_come_before_thumbnails(tmp_path, files):
    dataset = image_folder(tmp_path / "data")
    found = open_run(saved_run(tmp_path / "run", dataset))
    with pytest.raises(DataError, match="at least 30 images"):  # of the 120 only the 20 in the folder
        make_study(
            found, "simulate", layer=files["layer"], features=files["features"], files=files_below(tmp_path / "data")
        )
    with pytest.raises(DataError, match=r"No example of .* has a picture. Name the root folder"):
        make_study(found, "simulate", layer=files["layer"], features=files["features"])


def test_make_study__what_is_missing_is_named(tmp_path, files):
    of = run(tmp_path)
    for options, message in (
        ({"task": "guess"}, "must be one of simulate, match, describe, questionnaire"),
        ({"task": "simulate"}, "needs --layer FILE"),
        ({"task": "match", "layer": files["layer"]}, "needs --features FILE"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make_study(of, **options)
    for name, message in (
        ("other", "is a layer of 12 features, .* holds 5"),
        ("lacking", "lacks labels, ids"),
        ("layer", "lacks features"),
    ):
        with pytest.raises(DataError, match=message):
            make_study(of, "simulate", layer=files["layer"], features=files[name])
    (tmp_path / "broken.safetensors").write_text("x")
    with pytest.raises(DataError, match="is no safetensors file"):
        make_study(of, "simulate", layer=files["layer"], features=tmp_path / "broken.safetensors")
    with pytest.raises(DataError, match="holds no pictures of features"):
        make_study(open_run(saved_run(tmp_path / "run", None)), "describe")
