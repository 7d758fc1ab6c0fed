"""Report files on disk, written whatever loggers there are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.atomic import copy_atomically, write_atomically
from lightning_failures.core.run_paths import REPORT_FILE
from lightning_failures.core.text import looks_digested, to_bytes, with_digest
from lightning_failures.data.example_table import ANALYSIS_TABLE_FILE, EXAMPLES_FILE, MAX_TABLES
from lightning_failures.data.report import FailureReport, FeatureReport, analysis_name
from lightning_failures.directions.result import DIRECTIONS_FILE
from lightning_failures.report.feature_names import FEATURES_FILE, add_to_template
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.gallery_storage import load_gallery, save_gallery
from lightning_failures.report.html.write import write_html
from lightning_failures.report.markdown import report_markdown
from lightning_failures.report.run_folder import GALLERY_FILE, HTML_FILE, open_run, report_before
from lightning_failures.report.sparse import SparseReport, sparse_report
from lightning_failures.writers.base import Writer, WriterLimits

NAMED_FEATURES = 12
"""Number of features of the model, those most often behind errors, that ``features.yaml`` asks for."""


@dataclass(frozen=True)
class FileWriter(Writer):
    """Writes a folder for every analysis, ``epoch=0003-step=000250/``, with report.json, report.md and images.

    ``<folder>/`` itself holds the last analysis: ``report.json``, the failure directions (for scoring pools later) and
    the table of examples; directions and table are removed if the last report has none. When pictures are shown,
    ``gallery.json`` and ``report.html`` are added, and ``features.yaml``, in which people name features, unless
    ``feature_names`` is a file of their own. See :mod:`lightning_failures.report.run_folder`.
    """

    folder: Path
    feature_names: Path | None = None

    def write(self, result: AnalysisResult, step: int) -> None:
        """Write one analysis; each file appears whole or not at all."""
        report = result.report
        here = self.folder / analysis_name(report, step)
        text = to_bytes(report.to_json())
        write_atomically(here / REPORT_FILE, text)  # first, in case the disk fills up
        self._write_markdown(report, step)
        directions, examples = self.folder / DIRECTIONS_FILE, self.folder / EXAMPLES_FILE
        for path, saved in ((directions, result.directions), (examples, result.table)):
            if saved is None:
                path.unlink(missing_ok=True)
            else:
                saved.save(path)
        if result.table is not None:
            self._keep_table(examples, here)
        write_atomically(self.folder / REPORT_FILE, text)

    def show(self, result: AnalysisResult, gallery: Gallery, step: int) -> None:
        """Add the pictures and features to the report; files that can be rebuilt later are written last."""
        report = result.report
        here = self.folder / analysis_name(report, step)
        write_report(report, here, self.folder)
        for picture in gallery.logged:
            write_atomically(here / _image_file(picture), picture.png)
        save_gallery(gallery, self.folder / GALLERY_FILE)
        self._write_markdown(report, step, gallery)
        try:
            self._add_to_feature_names(report)  # may be a damaged file of the user
        finally:
            self._write_html(gallery)

    def write_verdict(self, result: AnalysisResult, step: int) -> None:
        """Add the verdict to the records of the last analysis, and to the HTML page if there is one."""
        self.rewrite(result, step)

    def rewrite(self, result: AnalysisResult, step: int) -> None:
        """Write the records of the last analysis again, and the HTML page if there is one, with a changed report."""
        report = result.report
        here = self.folder / analysis_name(report, step)
        write_report(report, here, self.folder)
        drawn = load_gallery(self.folder / GALLERY_FILE) if (self.folder / GALLERY_FILE).is_file() else None
        of_this_analysis = drawn is not None and drawn.global_step == report.global_step
        self._write_markdown(report, step, drawn if of_this_analysis else None)
        if (self.folder / HTML_FILE).is_file():
            self._write_html()

    def limits(self) -> WriterLimits:
        """Return that files hold everything."""
        return WriterLimits("files", examples=None, examples_in="the HTML page")

    def _keep_table(self, written: Path, here: Path) -> None:
        """Copy the table of an analysis to its folder, so that epochs can be compared; tables between are removed."""
        copy_atomically(written, here / ANALYSIS_TABLE_FILE)
        tables = sorted(self.folder.glob(f"*/{ANALYSIS_TABLE_FILE}"), key=lambda path: path.stat().st_mtime_ns)
        for path in tables[1 : max(1, len(tables) + 1 - MAX_TABLES)]:
            path.unlink(missing_ok=True)

    def _write_markdown(self, report: FailureReport, step: int, gallery: Gallery | None = None) -> None:
        pictures = () if gallery is None else gallery.pictures
        images = [(_image_file(picture), picture.caption or picture.tag) for picture in pictures]
        text = report_markdown(report, before=report_before(self.folder, report, step), images=images)
        write_atomically(self.folder / analysis_name(report, step) / "report.md", to_bytes(text))

    def _write_html(self, gallery: Gallery | None = None) -> None:
        own = self.feature_names
        write_html(open_run(self.folder, feature_names=own if own and own.is_file() else None, gallery=gallery))

    def _add_to_feature_names(self, report: FailureReport) -> None:
        """Add the features without any annotation to the YAML file in which people annotate them."""
        encoder = report.robust_encoder_fingerprint
        unnamed = [one for one in report.features if one.name is None and one.tag is None and one.action is None]
        path = self.feature_names or self.folder / FEATURES_FILE
        if encoder is not None and unnamed:
            add_to_template(path, unnamed, encoder=encoder)
        sparse = sparse_report(report)
        if sparse is not None and sparse.fingerprint is not None:
            named = {one.feature for one in sparse.names}
            behind = [one for one in sparse.problematic[:NAMED_FEATURES] if one.feature not in named]
            add_to_template(
                path,
                [FeatureReport(one.feature, caption=_hypothesis(sparse, one.feature)) for one in behind],
                encoder=sparse.fingerprint,
                remarks={
                    one.feature: f"feature of the model itself, behind {one.errors} errors of its sparse layer"
                    for one in behind
                },
            )


def _hypothesis(found: SparseReport, feature: int) -> str | None:
    """Return the caption that a feature of the model looks like; None without one."""
    card = found.card(feature)
    return None if card is None else card.caption


def write_report(report: FailureReport, *folders: Path) -> None:
    """Write ``report.json`` into some folders."""
    text = to_bytes(report.to_json())
    for folder in folders:
        write_atomically(folder / REPORT_FILE, text)


def run_files(folder: Path) -> list[Path]:
    """Return the files of the last analysis that exist, with which ``report`` and ``diff`` work elsewhere.

    Args:
        folder: The folder of the report files.
    """
    names = (HTML_FILE, REPORT_FILE, EXAMPLES_FILE, GALLERY_FILE, DIRECTIONS_FILE, FEATURES_FILE)
    return [folder / name for name in names if (folder / name).is_file()]


def file_name(text: str, limit: int = 60) -> str:
    """Return a file name for any text; different texts get different names, also on case-insensitive file systems.

    >>> file_name("classes/cat"), file_name("../../etc")[:3]
    ('classes-cat', 'etc')
    """
    safe = re.sub(r"[^A-Za-z0-9_=]+", "-", text).strip("-")[:limit]
    if safe and safe.replace("-", "/") == text == text.lower() and not looks_digested(safe):
        return safe
    return with_digest(safe or "x", text)


def _image_file(picture: Picture) -> str:
    return f"images/{file_name(picture.tag)}.png"
