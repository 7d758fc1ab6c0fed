"""TensorBoard: scalars laid out in charts, a ranked table, sentences, pictures and points under stable tags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_failures.data.report import FailureReport
from lightning_failures.report.example_rows import example_rows
from lightning_failures.report.gallery import Gallery
from lightning_failures.report.gallery_storage import to_png
from lightning_failures.report.interventions import interventions_markdown
from lightning_failures.report.tables import markdown_table
from lightning_failures.writers.base import report_texts, tag_prefix
from lightning_failures.writers.layout import chart_names, extended, written_layout
from lightning_failures.writers.projector import write_projector


@dataclass(frozen=True)
class TensorBoardWriter:
    """Writes through the ``SummaryWriter`` of a TensorBoardLogger. The callback logs scalars itself.

    TensorBoard keeps about ten images for each tag, so a tag means the same at every step.
    """

    logger: Any
    _names: set[str] = field(default_factory=set, repr=False, compare=False)  # of scalars that are laid out
    _before: dict[str, FailureReport] = field(default_factory=dict, repr=False, compare=False)  # by prefix

    def write(self, report: FailureReport, step: int) -> None:
        """Write one analysis."""
        writer = self.logger.experiment
        prefix = tag_prefix(report)
        texts = {"table": markdown_table(report, before=self._before.get(prefix))} | report_texts(report)
        for tag, text in texts.items():
            writer.add_text(f"{prefix}/{tag}", text, step)
        self._before[prefix] = FailureReport(report.examples, report.accuracy, report.classes)
        self._lay_out(chart_names(report))
        writer.flush()

    def show(self, report: FailureReport, gallery: Gallery, step: int) -> None:
        """Add the pictures, and the points of the projector."""
        writer = self.logger.experiment
        prefix = tag_prefix(report)
        for picture in gallery.pictures:
            _add_image(writer, f"{prefix}/{picture.tag}", picture.image, step)
        writer.flush()
        if gallery.thumbnails is not None and report.table is not None:
            rows = example_rows(report, gallery.thumbnails.ids)
            write_projector(writer, f"{prefix}/examples", step, rows, gallery.thumbnails)

    def conclude(self, report: FailureReport, step: int) -> None:
        """Tell of the interventions again, now with their verdict."""
        writer = self.logger.experiment
        writer.add_text(f"{tag_prefix(report)}/interventions", interventions_markdown(report), step)
        writer.flush()

    def _lay_out(self, names: set[str]) -> None:
        """Lay the scalars out in charts once, and again when there are new ones."""
        if names <= self._names:
            return
        writer = self.logger.experiment
        writer.flush()  # what others have laid out, also the sink of another loader, is read from the disk
        layout = extended(written_layout(Path(writer.log_dir)), names)
        if layout is not None:
            writer.add_custom_scalars(layout)
        self._names.update(names)


def _add_image(writer: Any, tag: str, image: Tensor, step: int) -> None:
    """``SummaryWriter.add_image``, which takes three times as long to make the smallest PNG."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    if writer.file_writer is None:  # closed: the method opens it again
        writer.add_image(tag, image, step)
        return
    _, height, width = image.shape
    shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=to_png(image))
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=shown)]), step)
