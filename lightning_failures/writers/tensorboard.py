"""TensorBoard: scalar charts, ranked table, sentences, pictures and projector points, all under stable tags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.data.report import FailureReport
from lightning_failures.report.example_rows import example_rows
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.interventions import interventions_markdown
from lightning_failures.report.markdown import report_sections
from lightning_failures.report.tables import classes_markdown
from lightning_failures.writers.base import Writer, WriterLimits, tag_prefix
from lightning_failures.writers.class_table import without_details
from lightning_failures.writers.layout import chart_names, extended_layout, written_layout
from lightning_failures.writers.projector import write_projector

IMAGES_PER_TAG = 10
"""TensorBoard loads about ten images of each tag, so a tag means the same at every step."""


@dataclass(frozen=True)
class TensorBoardWriter(Writer):
    """Writes through the ``SummaryWriter`` of a TensorBoardLogger. Scalars are logged by the callback itself."""

    logger: Any
    _charted: set[str] = field(default_factory=set, repr=False, compare=False)  # scalars that are in the layout
    _previous: dict[str, FailureReport] = field(default_factory=dict, repr=False, compare=False)  # by tag prefix

    def write(self, result: AnalysisResult, step: int) -> None:
        """Write the table and the texts of one analysis, and lay out its scalars."""
        report = result.report
        writer = self.logger.experiment
        prefix = tag_prefix(report)
        texts = {"table": classes_markdown(report, before=self._previous.get(prefix))} | report_sections(report)
        for tag, text in texts.items():
            writer.add_text(f"{prefix}/{tag}", text, step)
        self._previous[prefix] = without_details(report)
        self._lay_out(chart_names(report))
        writer.flush()

    def show(self, result: AnalysisResult, gallery: Gallery, step: int) -> None:
        """Add the pictures, and the points of the projector."""
        report = result.report
        writer = self.logger.experiment
        prefix = tag_prefix(report)
        for picture in gallery.logged:
            _add_image(writer, f"{prefix}/{picture.tag}", picture, step)
        writer.flush()
        if gallery.thumbnails is not None and result.table is not None:
            rows = example_rows(report, result.table, gallery.thumbnails.ids)
            write_projector(writer, f"{prefix}/examples", step, rows, gallery.thumbnails)

    def write_verdict(self, result: AnalysisResult, step: int) -> None:
        """Write the text on interventions again, with the verdict."""
        report = result.report
        writer = self.logger.experiment
        writer.add_text(f"{tag_prefix(report)}/interventions", interventions_markdown(report), step)
        writer.flush()

    def limits(self) -> WriterLimits:
        """Return the number of drawings that TensorBoard loads of a picture, and where examples are shown."""
        return WriterLimits(
            "TensorBoard",
            drawings=IMAGES_PER_TAG,
            examples=None,
            examples_in="the projector",
            examples_need_embeddings=True,
        )

    def _lay_out(self, names: set[str]) -> None:
        """Write the layout of scalars if a name is not in it yet."""
        if names <= self._charted:
            return
        writer = self.logger.experiment
        writer.flush()  # layouts of others, for instance of another loader's writer, are read from disk
        layout = extended_layout(written_layout(Path(writer.log_dir)), names)
        if layout is not None:
            writer.add_custom_scalars(layout)
        self._charted.update(names)


def _add_image(writer: Any, tag: str, picture: Picture, step: int) -> None:
    """Add a picture as ``SummaryWriter.add_image`` does, which spends three times as long on compression."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    if writer.file_writer is None:  # closed; add_image opens a new file
        writer.add_image(tag, picture.image, step)
        return
    _, height, width = picture.image.shape
    encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=picture.png)
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=encoded)]), step)
