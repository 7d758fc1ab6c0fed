"""Points of the projector, read back from its files."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from lightning_failures.report.gallery import Gallery
from lightning_failures.writers import TensorBoardWriter
from tests.writers.analyses import read_back, report, table, thumbnails


def projector(folder: str) -> ProjectorConfig:
    return text_format.Parse((Path(folder) / "projector_config.pbtxt").read_text(), ProjectorConfig())


def test_projector__points_labels_and_thumbnails_belong_together(tmp_path):
    logger = TensorBoardLogger(tmp_path, sub_dir="sub")
    of = table()
    thumbs = thumbnails(of)
    thumbs.embeddings[2] = float("nan")  # was not embedded
    TensorBoardWriter(logger).show(report(table=of), Gallery((), thumbs), 250)
    assert read_back(logger.log_dir).Tags()["images"] == []
    (info,) = projector(logger.log_dir).embeddings
    assert info.tensor_name == "failures/examples:00250"
    points = np.loadtxt(Path(logger.log_dir) / info.tensor_path, delimiter="\t", dtype=np.float32)
    kept = [k for k in range(12) if k != 2]
    assert list(info.tensor_shape) == [11, 4]
    np.testing.assert_allclose(points, thumbs.embeddings[kept], rtol=1e-5)
    lines = (Path(logger.log_dir) / info.metadata_path).read_text().split("\n")
    assert len(lines) == 1 + 11 + 1  # no name breaks a line
    rows = list(csv.DictReader(lines, delimiter="\t"))
    assert [int(row["id"]) for row in rows] == of.ids[kept].tolist()
    assert {row["label"] for row in rows} == {"cat", "dog =1 <b> ?"}
    assert [row["right"] == "no" for row in rows] == of.failed[kept].tolist()
    assert (rows[1]["decision value"], rows[1]["flagged"]) == ("", "")  # unknown, not 0
    assert [row["flagged"] == "yes" for row in rows] == of.flagged[kept].tolist()
    assert [float(row["confidence"]) for row in rows] == pytest.approx(of.confidence[kept].tolist(), rel=1e-3)
    sprite = np.array(Image.open(Path(logger.log_dir) / info.sprite.image_path))
    assert sprite.shape == (32, 32, 3)
    assert list(info.sprite.single_image_dim) == [8, 8]
    frames = sprite[::8, ::8].reshape(-1, 3)[: len(kept)].tolist()
    assert [frame == [217, 77, 38] for frame in frames] == of.failed[kept].tolist()
    assert sprite[4::8, 4::8, 0].ravel()[:11].tolist() == kept
    logger.experiment.close()


def test_projector__a_later_analysis_takes_the_place_of_an_earlier(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    writer, of = TensorBoardWriter(logger), table()
    for step in (1, 2, 3, 4):
        writer.show(report(table=of), Gallery((), thumbnails(of)), step)
    TensorBoardWriter(logger).show(report(table=of, stage="test"), Gallery((), thumbnails(of)), 4)
    assert [one.tensor_name for one in projector(logger.log_dir).embeddings] == [
        "failures/examples:00004", "failures/test/examples:00004",
    ]  # fmt: skip
    stored = Counter(path.parent.parent.name for path in Path(logger.log_dir).rglob("tensors.tsv"))
    assert stored == {"failures-examples": 2, "failures-test-examples": 1}  # the last, and what a running server reads
    logger.experiment.close()


def test_projector__embeddings_of_the_user_stay(tmp_path):
    of = table()
    for version in (0, 0):  # the second time is a resume
        logger = TensorBoardLogger(tmp_path, version=version)
        with contextlib.redirect_stdout(io.StringIO()):
            logger.experiment.add_embedding(torch.eye(3), tag="before")
            TensorBoardWriter(logger).show(report(table=of), Gallery((), thumbnails(of)), 1)
            logger.experiment.add_embedding(torch.eye(3), tag="after")
        logger.experiment.close()
        names = [one.tensor_name for one in projector(logger.log_dir).embeddings]
        assert sorted(names) == ["after:00000", "before:00000", "failures/examples:00001"]


def test_projector__summary_writer_keeps_its_configuration_where_we_set_it(tmp_path):
    """Why :mod:`lightning_failures.writers.projector` sets a private attribute, and that this still works."""
    writer = TensorBoardLogger(tmp_path).experiment
    assert not hasattr(writer, "_projector_config")
    with contextlib.redirect_stdout(io.StringIO()):
        writer.add_embedding(torch.eye(3), tag="mine")
    assert isinstance(writer._projector_config, ProjectorConfig)
    assert [one.tensor_name for one in writer._projector_config.embeddings] == ["mine:00000"]
    writer._projector_config = ProjectorConfig()
    with contextlib.redirect_stdout(io.StringIO()):
        writer.add_embedding(torch.eye(3), tag="other")
    written = next(Path(writer.log_dir).rglob("projector_config.pbtxt")).read_text()
    assert "other:00000" in written
    assert "mine:00000" not in written  # the whole file is written from the attribute
    writer.close()


def test_projector__nothing_to_show(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    writer, of = TensorBoardWriter(logger), table()
    without = replace(thumbnails(of), embeddings=None)
    unknown = replace(thumbnails(of), embeddings=torch.full((12, 4), float("nan")))
    for gallery in (Gallery(), Gallery((), without), Gallery((), unknown)):
        writer.show(report(table=of), gallery, 1)
    writer.show(report(), Gallery((), thumbnails(of)), 1)  # no table
    assert not list(Path(logger.log_dir).glob("*projector*"))
    (Path(logger.log_dir) / "projector_config.pbtxt").write_bytes(b"\xff of something else {")
    writer.show(report(table=of), Gallery((), thumbnails(of)), 1)
    assert len(projector(logger.log_dir).embeddings) == 1
    logger.experiment.close()
