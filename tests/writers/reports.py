"""A report with a pattern, noise and a skipped class of a hostile name, and pictures."""

from __future__ import annotations

import torch

from lightning_failures.analysis import AnalysisResult
from lightning_failures.data.report import ClassReport, ConfusionReport, MistakenReport, SliceReport, ValueReport
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.report.gallery import Gallery, Picture, Row, Tile
from tests.helpers.results import analysed

NASTY = "../../<script>|*x*\n🙂\udcff" + "y" * 10_000


def report(epoch: int = 3, **options) -> AnalysisResult:
    classes = (
        ClassReport("cat", 40, accuracy=0.9, cv_score=0.6, p_value=0.4),
        ClassReport(
            "dog",
            40,
            accuracy=0.5,
            cv_score=0.9,
            p_value=0.001,
            pattern=True,
            flagged=18,
            strength="strong",
            effect=0.8,
            effect_interval=(0.6, 0.9),
            flagged_error_rate=0.9,
            unflagged_error_rate=0.1,
            failures_flagged=0.8,
            hardest_captions=("a photo of a dog in the snow",),
            easiest_captions=("a photo of a dog on grass",),
            enrichment=(ValueReport("weather", "snow", 9, 8, 8, 3, 0.2, 0.8, 0.8, (0.5, 0.9), 0.3),),
            mistaken_for=(MistakenReport("cat", 20, 1.0),),
            slices=(SliceReport("weather", "snow", "dog", 9, 8, 0.8, (0.5, 0.9), 0.2, 0.6, (0.3, 0.7), 0.001, True),),
        ),
        ClassReport(NASTY, 3, accuracy=None, skipped="2 failures"),
    )
    leaf = LeafReport("feature 17 > 0.36", 20, 0.8, 0.7, 0.56, True, (0.5, 0.9))
    group = GroupReport("label", "dog", 40, 0.5, 0.7, 0.6, 0.1, 0.02, True, None, (leaf,))
    confusions = (ConfusionReport("dog", "cat", 20, 1.0),)
    return analysed(
        83, 0.7, classes, (group,), confusions=confusions, summary={"cv_score_mean": 0.75}, epoch=epoch, **options
    )


def picture(tag: str, image: torch.Tensor, caption: str = "") -> Picture:
    return Picture(tag, (Row("", (Tile(image),)),), caption)


def pictures(count: int = 3) -> Gallery:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[0] = 200
    drawn = picture("classes/dog", image, "dog"), picture("classes/cat", image.flip(0), "cat")
    return Gallery((*drawn, picture(f"rules/{NASTY}", image))[:count])
