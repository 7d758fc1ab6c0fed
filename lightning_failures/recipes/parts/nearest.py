"""Accuracy of the images nearest to a caption (Jain et al., ICLR 2023, C.1.5 and C.2.2).

A sheet shows these images, so that people can judge whether they show what the caption says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_failures.core.types import IntArray
from lightning_failures.encoders.base import TextEncoder
from lightning_failures.recipes.base import Found
from lightning_failures.recipes.parts.files import write_picture
from lightning_failures.recipes.training import Trained
from lightning_failures.report.images import image_strip, stack

NUMBERS = (10, 20, 50, 100)
SHARES = (0.05, 0.1, 0.2, 0.5)
ON_SHEET, CLASSES_ON_SHEET = 8, 20


class Near(NamedTuple):
    """The test images of one class, nearest to a caption first."""

    class_index: int
    end: str
    caption: str
    rows: IntArray


def nearest(trained: Trained) -> Found:
    """Return accuracies of the nearest images, and write the sheet."""
    if not isinstance(trained.encoder, TextEncoder) or trained.setting.multilabel:
        return Found(notes=("The images nearest to captions need an encoder with texts, and one label an image.",))
    near = list(nearest_rows(trained, trained.encoder))
    if not near:
        return Found(notes=("No class has captions, so there are no images nearest to them.",))
    right = 1.0 - trained.test.failed
    figures: dict[str, float] = {}
    for end in ("hardest", "easiest"):
        of_end = [one.rows for one in near if one.end == end]
        by_number = {f"{number}": [rows[:number] for rows in of_end] for number in NUMBERS}
        by_share = {f"{share:.0%}".replace("%", " %"): [rows[: max(round(share * len(rows)), 1)] for rows in of_end]
                    for share in SHARES}  # fmt: skip
        for text, chosen in (by_number | by_share).items():
            figures[f"accuracy of the {text} nearest to the {end} caption"] = float(
                np.mean([right[rows].mean() for rows in chosen])
            )
    path = trained.output / f"nearest-seed-{trained.seed}.png"
    write_picture(_sheet(trained, near[: 2 * CLASSES_ON_SHEET]), path)
    return Found(figures, files={f"images nearest to the captions of seed {trained.seed}": path.name})


def nearest_rows(trained: Trained, encoder: TextEncoder) -> Iterator[Near]:
    """Yield the test images of each class with captions, sorted by similarity to its hardest and easiest caption."""
    for k, entry in enumerate(trained.result.report.classes):
        rows = np.flatnonzero(trained.test.y == k)
        if not (len(rows) and entry.hardest_captions and entry.easiest_captions):
            continue
        texts = {"hardest": entry.hardest_captions[0], "easiest": entry.easiest_captions[0]}
        vectors = encoder.encode_texts(list(texts.values()))
        near = (trained.embeddings[torch.from_numpy(rows)] @ vectors.T.to(trained.embeddings.dtype)).numpy()
        for column, (end, caption) in enumerate(texts.items()):
            yield Near(k, end, caption, rows[np.argsort(-near[:, column], kind="stable")])


def _sheet(trained: Trained, near: list[Near]) -> Tensor:
    """Return the picture (3, H, W) uint8: a row for each caption, with what the network says about each image."""
    mean, std = (torch.tensor(values)[:, None, None] for values in trained.setting.statistics)
    names = trained.setting.class_names
    strips = []
    for one in near:
        rows = one.rows[:ON_SHEET].tolist()
        images = [(trained.setting.test[row][0] * std + mean).clamp(0, 1) for row in rows]
        texts = [names[int(trained.test.probabilities[row].argmax())] for row in rows]
        title = f"{names[one.class_index]}, {one.end} caption: {one.caption}"
        strips.append(image_strip(images, texts, title=title))
    return stack(strips)
