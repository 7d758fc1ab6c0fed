"""Weights & Biases: bounded tables of classes, findings and examples, pictures, and the report as an artifact.

W&B keeps 200,000 rows of a table and 108 images of a step; each example is a file.
"""

from __future__ import annotations

import html
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.data.report import FailureReport
from lightning_failures.report.findings import finding_sentence, next_step
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.interventions import interventions_markdown
from lightning_failures.report.markdown import report_sections
from lightning_failures.report.tables import class_names
from lightning_failures.writers.base import Writer, WriterLimits, tag_prefix
from lightning_failures.writers.class_table import EXAMPLE_COLUMNS as VALUES
from lightning_failures.writers.class_table import (
    MAX_EXAMPLES,
    MAX_IMAGES,
    MAX_ROWS,
    class_columns,
    class_rows,
    example_rows_of,
    pictures_of,
    pixels,
    utf8,
    without_details,
)
from lightning_failures.writers.files import run_files

EXAMPLE_COLUMNS = ("epoch", "image", *VALUES[1:])
FINDING_COLUMNS = (
    "epoch", "images", "finding", "error_rate", "error_rate_low", "error_rate_high", "error_rate_of_others",
    "failures", "how_sure", "next",
)  # fmt: skip

HIDDEN = ("class/*", "aler_minus_ber_mean", "analysis_age")
"""Scalars without a panel of their own: those of single classes, which the tables show, and what is in sample."""


@dataclass(frozen=True)
class WandbWriter(Writer):
    """Writes through a WandbLogger. Steps are logged as a value, because W&B drops rows whose step goes back.

    Attributes:
        logger: A WandbLogger of either namespace.
        folder: The folder of the report files, which are written before pictures are shown.
    """

    logger: Any
    folder: Path
    _previous: dict[str, FailureReport] = field(default_factory=dict, repr=False, compare=False)  # by tag prefix

    def write(self, result: AnalysisResult, step: int) -> None:
        """Log the table of classes and the texts of one analysis, and update the summary of the run."""
        import wandb

        report = result.report
        prefix = tag_prefix(report)
        table = wandb.Table(
            columns=class_columns(report), data=class_rows(report, self._previous.get(prefix), MAX_ROWS)
        )
        values: dict[str, Any] = {f"{prefix}/table": table, "trainer/global_step": step}
        values |= {f"{prefix}/{key}": _html(text) for key, text in report_sections(report).items()}
        run = self.logger.experiment
        if prefix not in self._previous:
            for name in HIDDEN:
                run.define_metric(f"{prefix}/{name}", hidden=True)
        self._previous[prefix] = without_details(report)
        run.log(values)
        run.summary.update({f"{prefix}/last/{key}": value for key, value in _summary(report).items()})

    def show(self, result: AnalysisResult, gallery: Gallery, step: int) -> None:
        """Log the findings with their images, the pictures and the table of examples, and upload the report files."""
        import wandb

        report = result.report
        prefix = tag_prefix(report)
        values: dict[str, Any] = {"trainer/global_step": step}
        if report.findings:
            rows = _finding_rows(report, {picture.tag: picture for picture in gallery.pictures})
            values[f"{prefix}/findings_with_images"] = wandb.Table(columns=list(FINDING_COLUMNS), data=rows)
        for picture, image in pictures_of(gallery):
            # one key each: W&B shows a list of images only if all have the same size
            values[f"{prefix}/{picture.tag}"] = wandb.Image(image, caption=utf8(picture.caption))
        if rows := _example_rows(result, gallery):
            values[f"{prefix}/examples"] = wandb.Table(columns=list(EXAMPLE_COLUMNS), data=rows)
        run = self.logger.experiment
        run.log(values)
        self._upload(run, report, prefix)

    def write_verdict(self, result: AnalysisResult, step: int) -> None:
        """Log the text on interventions again, with the verdict, and upload a new version of the report files."""
        report = result.report
        prefix, run = tag_prefix(report), self.logger.experiment
        run.log({f"{prefix}/interventions": _html(interventions_markdown(report)), "trainer/global_step": step})
        self._upload(run, report, prefix)

    def limits(self) -> WriterLimits:
        """Return what one analysis may log, and whether the run is offline."""
        # a WandbLogger has no public attribute for its mode; a test notices when this one is gone
        offline = bool(getattr(self.logger, "_offline", False)) or os.environ.get("WANDB_MODE", "online") != "online"
        return WriterLimits(
            "W&B",
            note="offline: upload the run with `wandb sync`" if offline else "",
            pictures=MAX_IMAGES,
            classes=MAX_ROWS,
            examples=MAX_EXAMPLES,
            examples_in="a table",
        )

    def _upload(self, run: Any, report: FailureReport, prefix: str) -> None:
        """Upload the report files as a new version of the run's artifact."""
        import wandb

        artifact = wandb.Artifact(
            f"{prefix.replace('/', '-')}-{run.id}",
            type="failure-report",
            metadata={"epoch": report.epoch, "global_step": report.global_step, **report.summary},
        )
        for path in run_files(self.folder):
            artifact.add_file(str(path))
        run.log_artifact(artifact)


def _summary(report: FailureReport) -> dict[str, Any]:
    """Return the aggregates, the number of classes with a pattern, and the class of the highest error rate."""
    summary = {**report.summary, "patterns": sum(entry.pattern for entry in report.classes)}
    worst = min(report.classes, key=lambda entry: entry.error_rank, default=None)
    if worst is None or worst.accuracy is None:
        return summary
    return {**summary, "worst_class": utf8(worst.name), "worst_class_error_rate": 1 - worst.accuracy}


def _finding_rows(report: FailureReport, pictures: dict[str, Picture]) -> list[list[Any]]:
    """Return the rows of the table of findings, as :data:`FINDING_COLUMNS`; rates are held-out ones."""
    import wandb

    names, rows = class_names(report), []
    for index, found in enumerate(report.findings):
        picture = pictures.get(f"findings/{index}")
        step = next_step(found)
        cells = (
            finding_sentence(found, names), found.error_rate, *(found.interval or (None, None)),
            found.error_rate_outside, found.failures, found.confidence, f"{step.words}: {step.code}",
        )  # fmt: skip
        image = None if picture is None else wandb.Image(pixels(picture.image))
        rows.append([report.epoch, image, *map(utf8, cells)])
    return rows


def _example_rows(result: AnalysisResult, gallery: Gallery) -> list[list[Any]]:
    """Return the rows of the table of examples with their images, failures first, by ascending decision value."""
    import wandb

    if gallery.thumbnails is None:
        return []
    images = gallery.thumbnails.images
    return [[epoch, wandb.Image(pixels(images[k])), *cells] for k, (epoch, *cells) in example_rows_of(result, gallery)]


def _html(text: str) -> Any:
    import wandb

    return wandb.Html(f"<pre>{html.escape(text)}</pre>")
