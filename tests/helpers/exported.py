"""A run folder over an ImageFolder on disk, for tests of what reads the files of runs."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import ClassReport, SliceReport
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.report.gallery import Gallery, Thumbnails
from lightning_failures.trainer.example_names import hashed_file_names
from lightning_failures.writers import FileWriter
from tests.helpers.results import analysed

NIGHT = SliceReport("time", "night", "owl", 5, 4, 0.8, (0.4, 0.96), 0.2, 0.6, (0.1, 0.8), 0.01, True)
REVIEW = {"id": 33, "label": 1, "class": "=cat", "predicted": "owl", "probability_of_label": 0.02}


def image_folder(root: Path) -> ImageFolder:
    """Ten images of "=cat" and ten of "owl", each of its own gray."""
    for k in range(20):
        path = root / ("=cat" if k < 10 else "owl") / f"{k:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 9), (k, k, k)).save(path)
    return ImageFolder(root)


def saved_run(folder: Path, dataset: ImageFolder | None, *, thumbnails: int = 0) -> Path:
    """Write the files of a run: examples 8 to 13 fail, 10 to 14 are flagged, the label of 12 is doubted."""
    ids = torch.arange(20)
    labels = (ids >= 10).long()
    failed = (ids >= 8) & (ids < 14)
    values = torch.where((ids >= 10) & (ids < 15), -0.1 * (ids - 9), 1.0)
    leaves = torch.full((20,), -1)
    table = ExampleTable(
        ids=ids,
        labels=labels,
        predictions=torch.where(failed, 1 - labels, labels),
        confidence=torch.where(failed, 0.25, 0.75),
        values=values,
        label_leaf=torch.where(ids >= 10, 0, leaves),
        prediction_leaf=leaves,
        class_names=("=cat", "owl"),
        digests=ids + 100,
        names=None if dataset is None else hashed_file_names(dataset, ids),
        indexed=True,
    )
    classes = (
        ClassReport("=cat", 10, accuracy=0.8, flagged=0),
        ClassReport(
            "owl",
            10,
            accuracy=0.6,
            pattern=True,
            p_value=0.001,
            flagged=5,
            flagged_error_rate=0.8,
            unflagged_error_rate=0.0,
            hardest_captions=("a photo of a gray owl",),
            doubted_ids=(12,),
            slices=(NIGHT,),
        ),
    )
    tree = GroupReport(
        "label", "owl", 10, 0.4, pattern=True, leaves=(LeafReport("feature 3 > 1", 10, 0.9, 0.8, 0.7, True),)
    )
    result = analysed(
        20,
        0.7,
        classes,
        groups=(tree,),
        interventions=({"name": "Upweight", "review": [REVIEW | {"neighbours_agreeing": 1}]},),
        table=table,
        epoch=2,
        global_step=30,
        stage="fit",
    )
    writer = FileWriter(folder / "failures")
    writer.write(result, 30)
    if thumbnails:
        shown = torch.arange(10, 10 + thumbnails)
        images = shown.to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
        writer.show(result, Gallery((), Thumbnails(shown, images), 2, 30), 30)
    return folder
