"""ChestX-ray14: fourteen conditions, with the view position as metadata (Jain et al., ICLR 2023, sections 4.3 and C.3).

Test images are those of the data set's own list; its other images are training and validation, 7 to 1 by patient.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch

from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.base import Claim, Recipe, Schedule, Setting
from lightning_failures.recipes.images import ImageFiles
from lightning_failures.recipes.splits import every_tenth, split_by_source
from lightning_failures.recipes.transforms import IMAGENET, for_evaluation, for_training

SIZE, RESIZED = 224, 256
IMAGES = 112_120
SCHEDULE = Schedule(epochs=16, learning_rate=0.5, peak_epoch=2, batch_size=1024)
CONDITIONS = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip
FOCUS = ("Effusion", "Infiltration", "Mass")
"""Conditions that the published notebook looks at."""

_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_LISTS = ("train_val_list.txt", "test_list.txt")


def chestxray14_setting(data: Path, seed: int, quick: bool) -> Setting:
    """Return ChestX-ray14; images taken from the front (AP) are the group that is expected among the flagged."""
    whole, in_test = _read(data)
    patients = np.asarray(whole.groups)  # type: ignore[attr-defined]
    others = np.flatnonzero(~in_test)
    parts = split_by_source(patients[others], (0.875, 0.125), seed)
    train, validation = (others[part] for part in parts)
    test = whole.chosen(every_tenth(np.flatnonzero(in_test), quick))
    return Setting(
        train=whole.chosen(every_tenth(train, quick), for_training(SIZE)),
        validation=whole.chosen(every_tenth(validation, quick)),
        test=test,
        class_names=CONDITIONS,
        schedule=SCHEDULE,
        size=SIZE,
        statistics=IMAGENET,
        captions="chestxray",
        hard_in_test=np.array([view == "AP" for view in test.view], dtype=np.bool_),  # type: ignore[attr-defined]
        hard_words=dict.fromkeys(range(2 * len(CONDITIONS)), ("anteroposterior", "portable", "supine", "front", "bed")),
        complete=not quick and len(whole) == IMAGES,
        notes=(
            "The test images are those of the data set's own list, where the published code has another split by"
            " patient.",
            "Training images are cropped to 70 to 100 %, and flipped, with torchvision instead of FFCV.",
            "Captions need an encoder that was trained on such images.",
        ),
        multilabel=True,
        metadata=("view",),
        focus=FOCUS,
    )


def _read(data: Path) -> tuple[ImageFiles, np.ndarray]:
    """Return all images with their labels, patients and views, and which of them are test images."""
    table = next((data / name for name in _TABLES if (data / name).is_file()), None)
    missing = [name for name in _LISTS if not (data / name).is_file()]
    if table is None or missing:
        raise ConfigurationError(
            f"{data} does not hold ChestX-ray14: it needs {' or '.join(_TABLES)}, {' and '.join(_LISTS)}, and the"
            " images in images/ or images_001/images/ ... images_012/images/."
        )
    lists = [set((data / name).read_text(encoding="utf-8").split()) for name in _LISTS]
    files = {file.name: file for folder in sorted(data.glob("images*")) for file in sorted(folder.rglob("*.png"))}
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["Image Index"] in lists[0] | lists[1]]
    rows = [row for row in rows if row["Image Index"] in files]
    if not rows:
        raise ConfigurationError(f"{data}: no image of {table.name} lies in images/ or images_001/images/ ...")
    findings = [set(row["Finding Labels"].split("|")) for row in rows]
    whole = ImageFiles(
        [files[row["Image Index"]] for row in rows],
        [torch.tensor([name in found for name in CONDITIONS], dtype=torch.float32) for found in findings],
        CONDITIONS,
        for_evaluation(SIZE, resized=RESIZED),
        groups=[int(row["Patient ID"]) for row in rows],
        view=[row["View Position"] for row in rows],
    )
    return whole, np.array([row["Image Index"] in lists[1] for row in rows], dtype=np.bool_)


CHESTXRAY14 = Recipe(
    name="chestxray14",
    summary="ChestX-ray14, 14 conditions, with the view position as metadata",
    data="Data_Entry_2017.csv, train_val_list.txt, test_list.txt and the images (the NIH's page, no registration)",
    source="Jain et al., ICLR 2023, sections 4.3 and C.3",
    claims=(
        Claim("The flagged images without an effusion hold more AP views than the test set",
              "hard among flagged: no Effusion", "hard in all", "59.8 % of the flagged, 38.2 % of all",
              "Jain et al., 4.3"),
        Claim("The flagged images hold more AP views than the test set", "hard among flagged", "hard in all",
              "enriched for several conditions", "Jain et al., C.3.3"),
        Claim("AP views among the failures without an effusion", "hard among failures: no Effusion", None, "55.4 %",
              "Jain et al., 4.3"),
        Claim("The model is wrong more often on flagged test images than on the others", "error rate of flagged",
              "error rate of others", "", "Jain et al., 4.3"),
    ),
    setting=chestxray14_setting,
)  # fmt: skip
