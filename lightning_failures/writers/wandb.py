"""Weights & Biases: two bounded tables an analysis, pictures, and the files of the report as an artifact."""

from __future__ import annotations

import html
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from lightning_failures.data.example_table import EXAMPLES_FILE
from lightning_failures.data.report import FailureReport
from lightning_failures.directions.fit import DIRECTIONS_FILE
from lightning_failures.report.example_rows import ExampleRow, example_rows
from lightning_failures.report.feature_names import FEATURES_FILE
from lightning_failures.report.gallery import Gallery, Thumbnails
from lightning_failures.report.interventions import interventions_markdown
from lightning_failures.report.run_folder import GALLERY_FILE, HTML_FILE, REPORT_FILE
from lightning_failures.report.tables import error_changes, rank_classes
from lightning_failures.writers.base import found_captions, report_texts, tag_prefix

MAX_ROWS = 10_000
MAX_IMAGES = 108
MAX_EXAMPLES = 500
"""Of one analysis. W&B keeps 200,000 rows of a table, and 108 images of a step; examples are a file each."""

COLUMNS = (
    "epoch", "class", "examples", "accuracy", "error_rate", "change", "cv_score", "cv_score_stderr", "p_value",
    "pattern", "aler", "base_error_rate", "hardest_caption", "easiest_caption", "skipped",
)  # fmt: skip
EXAMPLE_COLUMNS = (
    "epoch", "image", "id", "label", "prediction", "right", "confidence", "decision_value", "flagged", "leaf",
)  # fmt: skip
FILES = (HTML_FILE, REPORT_FILE, EXAMPLES_FILE, GALLERY_FILE, DIRECTIONS_FILE, FEATURES_FILE)
"""What an artifact holds, of what there is: a whole run for ``lightning-failures report`` and ``diff``."""


@dataclass(frozen=True)
class WandbWriter:
    """Writes through a WandbLogger. It never names a step: W&B drops what goes back in steps.

    Attributes:
        logger: A WandbLogger of either namespace.
        folder: Of the files of the run, which are there when pictures are shown.
    """

    logger: Any
    folder: Path
    _before: dict[str, FailureReport] = field(default_factory=dict, repr=False, compare=False)  # by prefix

    def write(self, report: FailureReport, step: int) -> None:
        """Write one analysis."""
        import wandb

        prefix = tag_prefix(report)
        table = wandb.Table(columns=list(COLUMNS), data=_class_rows(report, self._before.get(prefix)))
        values: dict[str, Any] = {f"{prefix}/table": table, "trainer/global_step": step}
        values |= {f"{prefix}/{key}": _html(text) for key, text in report_texts(report).items()}
        self._before[prefix] = FailureReport(report.examples, report.accuracy, report.classes)
        run = self.logger.experiment
        run.log(values)
        run.summary.update({f"{prefix}/last/{key}": value for key, value in _summary(report).items()})

    def show(self, report: FailureReport, gallery: Gallery, step: int) -> None:
        """Add the pictures, the table of examples and the files."""
        import wandb

        prefix = tag_prefix(report)
        values: dict[str, Any] = {"trainer/global_step": step}
        for picture in gallery.pictures[:MAX_IMAGES]:
            # a key each: W&B shows a list only where all sizes are equal
            values[f"{prefix}/{picture.tag}"] = wandb.Image(_pixels(picture.image), caption=_text(picture.caption))
        if gallery.thumbnails is not None and report.table is not None:
            rows = _example_rows(report, gallery.thumbnails)
            values[f"{prefix}/examples"] = wandb.Table(columns=list(EXAMPLE_COLUMNS), data=rows)
        run = self.logger.experiment
        run.log(values)
        self._upload(run, report, prefix)

    def conclude(self, report: FailureReport, step: int) -> None:
        """Tell of the interventions again, now with their verdict, as does a new version of the files."""
        prefix, run = tag_prefix(report), self.logger.experiment
        run.log({f"{prefix}/interventions": _html(interventions_markdown(report)), "trainer/global_step": step})
        self._upload(run, report, prefix)

    def _upload(self, run: Any, report: FailureReport, prefix: str) -> None:
        """A version of the report: the same name in all analyses of a run."""
        import wandb

        artifact = wandb.Artifact(
            f"{prefix.replace('/', '-')}-{run.id}",
            type="failure-report",
            metadata={"epoch": report.epoch, "global_step": report.global_step, **report.summary},
        )
        for path in (self.folder / name for name in FILES):
            if path.is_file():
                artifact.add_file(str(path))
        run.log_artifact(artifact)


def _summary(report: FailureReport) -> dict[str, Any]:
    """The aggregates, and what people look for first: the worst class, and in how many there is a pattern."""
    found = {**report.summary, "patterns": sum(entry.pattern for entry in report.classes)}
    worst = next(iter(rank_classes(report)), None)
    if worst is None or worst.accuracy is None:
        return found
    return {**found, "worst_class": _text(worst.name), "worst_class_error_rate": 1 - worst.accuracy}


def _class_rows(report: FailureReport, before: FailureReport | None) -> list[list[Any]]:
    """The worst class first."""
    changes, rows = error_changes(report, before), []
    for entry in rank_classes(report)[:MAX_ROWS]:
        plain = entry.to_dict() | found_captions(entry)
        plain |= {
            "epoch": report.epoch,
            "class": entry.name,
            "error_rate": None if entry.accuracy is None else 1 - entry.accuracy,
            "change": changes.get(entry.name),
        }
        rows.append([_text(plain[column]) for column in COLUMNS])
    return rows


def _example_rows(report: FailureReport, thumbnails: Thumbnails) -> list[list[Any]]:
    """Failures first, of these the hardest first."""
    import wandb

    def order(item: tuple[ExampleRow, Any]) -> tuple[bool, bool, float]:
        row, _ = item
        return row.right, row.decision_value is None, row.decision_value or 0.0

    shown = sorted(zip(example_rows(report, thumbnails.ids), thumbnails.images, strict=True), key=order)
    return [
        [report.epoch, wandb.Image(_pixels(image)), *map(_text, astuple(row))] for row, image in shown[:MAX_EXAMPLES]
    ]


def _pixels(image: Any) -> Any:
    """(3, h, w) uint8 -> (h, w, 3) array."""
    return image.permute(1, 2, 0).numpy()


def _html(text: str) -> Any:
    import wandb

    return wandb.Html(f"<pre>{html.escape(text)}</pre>")


def _text(value: Any) -> Any:
    """W&B takes no bytes that are no UTF-8, as names of folders on Linux may hold."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
