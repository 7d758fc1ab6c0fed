"""TensorBoard: texts and pictures, read back from event files."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_failures.report.gallery import Gallery, Picture, Row, Tile
from lightning_failures.writers import TensorBoardWriter
from tests.writers.analyses import ENTRY, read_back, report
from tests.writers.reports import pictures
from tests.writers.reports import report as ranked_report


def test_write__change_since_the_last_analysis(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    writer = TensorBoardWriter(logger)
    writer.write(report(), 1)
    writer.write(report(dataloader=1), 1)  # of other examples: no change of these
    better = replace(ENTRY, accuracy=0.75)
    writer.write(report(classes=(better,), notes=("A sample of 5 %.",)), 2)
    logger.experiment.close()
    events = read_back(logger.log_dir)
    first, second = (e.tensor_proto.string_val[0].decode() for e in events.Tensors("failures/table/text_summary"))
    assert "change" not in first
    row = dict(zip(*([cell.strip() for cell in line.split("|")] for line in second.splitlines()[::2]), strict=True))
    assert (row["class"], row["examples"], row["error rate"], row["change"]) == ("cat", "40", "25.0 %", "-25.0 points")
    assert "A sample of 5 %." in events.Tensors("failures/notes/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "No pattern" in events.Tensors("failures/trust/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.parametrize("closed", [False, True])
def test_show__pictures_are_read_back(tmp_path, closed):
    logger = TensorBoardLogger(tmp_path)
    image = torch.zeros(3, 20, 30, dtype=torch.uint8) + torch.tensor([200, 100, 0], dtype=torch.uint8)[:, None, None]
    picture = Picture("classes/cat", (Row("hardest", (Tile(image, "-1.0"),)),))
    if closed:
        logger.experiment.close()
    TensorBoardWriter(logger).show(report(), Gallery((picture,)), 250)
    logger.experiment.close()
    (event,) = read_back(logger.log_dir).Images("failures/classes/cat")
    drawn = np.array(Image.open(io.BytesIO(event.encoded_image_string)))
    assert event.step == 250
    assert (event.height, event.width, 3) == drawn.shape
    assert np.array_equal(drawn, picture.image.permute(1, 2, 0).numpy())


def test_write_verdict__replaces_the_text(tmp_path):
    acted = {"kind": "Upweight", "epoch": 3, "flagged": 4, "changes_training": True, "classes": []}
    logger = TensorBoardLogger(tmp_path)
    writer = TensorBoardWriter(logger)
    writer.write(report(interventions=(acted,)), 1)
    writer.write_verdict(
        report(interventions=(acted | {"verdict": {"outcome": "helped", "sentence": "It helped."}},)), 1
    )
    logger.experiment.close()
    texts = read_back(logger.log_dir).Tensors("failures/interventions/text_summary")
    before, after = (event.tensor_proto.string_val[0].decode() for event in texts)
    assert "not measured" in before
    assert "It helped." in after


def test_write__table_texts_and_pictures_are_read_back(tmp_path):

    logger = TensorBoardLogger(tmp_path)
    writer = TensorBoardWriter(logger)
    writer.write(ranked_report(3), 250)
    writer.show(ranked_report(3), pictures(2), 250)
    writer.write(ranked_report(4), 300)
    writer.show(ranked_report(4), pictures(2), 300)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {"failures/classes/dog", "failures/classes/cat"} == set(events.Tags()["images"])
    assert [event.step for event in events.Images("failures/classes/dog")] == [250, 300]
    table = events.Tensors("failures/table/text_summary")[0].tensor_proto.string_val[0].decode()
    assert table.index("dog") < table.index("cat")  # ranked by error
    assert "<script>" not in table
    assert "feature 17" in events.Tensors("failures/rules/text_summary")[0].tensor_proto.string_val[0].decode()
    assert (
        "| dog | cat | 20 |"
        in events.Tensors("failures/confusions/text_summary")[0].tensor_proto.string_val[0].decode()
    )
    assert "weather = snow" in events.Tensors("failures/slices/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "weather = snow" in events.Tensors("failures/enrichment/text_summary")[0].tensor_proto.string_val[0].decode()


def test_write__other_loaders_have_their_own_tags(tmp_path):

    logger = TensorBoardLogger(tmp_path)
    TensorBoardWriter(logger).write(ranked_report(dataloader=1), 1)
    TensorBoardWriter(logger).show(ranked_report(dataloader=1), pictures(1), 1)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["images"] == ["failures/dataloader_1/classes/dog"]
