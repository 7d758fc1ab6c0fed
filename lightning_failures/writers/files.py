"""Files on disk: the record that is always written, whatever logger there is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import escape_markdown, looks_digested, number, to_bytes, with_digest
from lightning_failures.data.example_table import EXAMPLES_FILE
from lightning_failures.data.report import FailureReport, analysis_name
from lightning_failures.directions.fit import DIRECTIONS_FILE
from lightning_failures.report.diary import diary_markdown
from lightning_failures.report.feature_names import FEATURES_FILE, add_to_template
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.gallery_storage import load_gallery, save_gallery, to_png
from lightning_failures.report.html.write import write_html
from lightning_failures.report.interventions import interventions_markdown
from lightning_failures.report.run_folder import GALLERY_FILE, HTML_FILE, REPORT_FILE, open_run, report_before
from lightning_failures.report.tables import (
    enrichment_markdown,
    markdown_table,
    notes_markdown,
    tree_markdown,
    trust_markdown,
)


@dataclass(frozen=True)
class FileWriter:
    """A folder for every analysis, ``epoch=0003-step=000250/``, with report.json, report.md and images.

    The last report also lies in ``<folder>/report.json``, and beside it the directions that it tells of, for pools that
    are scored later, and its table of examples. Where the last report has none, there is no such file. With the
    pictures come ``gallery.json`` and ``report.html``, which are all that a reader needs, and ``features.yaml``, in
    which people name features, unless they do so in a file of their own, ``feature_names``. See
    :mod:`lightning_failures.report.run_folder`.
    """

    folder: Path
    feature_names: Path | None = None

    def write(self, report: FailureReport, step: int) -> None:
        """Write one analysis; each file appears whole or not at all."""
        here = self.folder / analysis_name(report, step)
        write_report(report, here)  # first, in case the disk fills up
        write_atomically(here / "report.md", to_bytes(_markdown(report, report_before(self.folder, report, step))))
        directions, examples = self.folder / DIRECTIONS_FILE, self.folder / EXAMPLES_FILE
        for path, saved in ((directions, report.directions), (examples, report.table)):
            if saved is None:
                path.unlink(missing_ok=True)
            else:
                saved.save(path)
        write_report(report, self.folder)

    def show(self, report: FailureReport, gallery: Gallery, step: int) -> None:
        """Add the pictures to the report, and its features; what can be done again later comes last."""
        here = self.folder / analysis_name(report, step)
        write_report(report, here)
        write_report(report, self.folder)
        for picture in gallery.pictures:
            write_atomically(here / _image_file(picture), to_png(picture.image))
        save_gallery(gallery, self.folder / GALLERY_FILE)
        before = report_before(self.folder, report, step)
        write_atomically(here / "report.md", to_bytes(_markdown(report, before, gallery)))
        try:
            self._ask_for_names(report)  # in a file of the user, which may be damaged
        finally:
            self._make_page(gallery)

    def conclude(self, report: FailureReport, step: int) -> None:
        """Put the verdict into the records of the last analysis, and into its page, if it has one."""
        here = self.folder / analysis_name(report, step)
        write_report(report, here)
        write_report(report, self.folder)
        drawn = load_gallery(self.folder / GALLERY_FILE) if (self.folder / GALLERY_FILE).is_file() else None
        gallery = drawn if drawn is not None and drawn.global_step == report.global_step else None
        before = report_before(self.folder, report, step)
        write_atomically(here / "report.md", to_bytes(_markdown(report, before, gallery)))
        if (self.folder / HTML_FILE).is_file():
            self._make_page()

    def _make_page(self, gallery: Gallery | None = None) -> None:
        own = self.feature_names
        write_html(open_run(self.folder, feature_names=own if own and own.is_file() else None, gallery=gallery))

    def _ask_for_names(self, report: FailureReport) -> None:
        """Add the features that nothing is known of to the file in which they get names."""
        encoder = report.robust_encoder_fingerprint
        unnamed = [one for one in report.features if one.name is None and one.tag is None and one.action is None]
        if encoder is not None and unnamed:
            add_to_template(self.feature_names or self.folder / FEATURES_FILE, unnamed, encoder=encoder)


def _markdown(report: FailureReport, before: FailureReport | None, gallery: Gallery | None = None) -> str:
    accuracy = number(report.accuracy, ".3f")
    title = f"# Epoch {report.epoch}, step {report.global_step}: {report.examples} examples, accuracy {accuracy}"
    parts = [title, markdown_table(report, before=before), notes_markdown(report), trust_markdown(report)]
    parts += [diary_markdown(report), enrichment_markdown(report), interventions_markdown(report)]
    parts.append(tree_markdown(report))
    for picture in () if gallery is None else gallery.pictures:
        parts.append(f"![{escape_markdown(picture.caption or picture.tag)}]({_image_file(picture)})")
    return "\n\n".join(part for part in parts if part) + "\n"


def _image_file(picture: Picture) -> str:
    return f"images/{file_name(picture.tag)}.png"


def write_report(report: FailureReport, folder: Path) -> None:
    """Write ``<folder>/report.json``."""
    write_atomically(folder / REPORT_FILE, to_bytes(report.to_json()))


def file_name(text: str, limit: int = 60) -> str:
    """Turn any text into the name of one file; different texts have different names, without regard to case too.

    >>> file_name("classes/cat"), file_name("../../etc")[:3]
    ('classes-cat', 'etc')
    """
    plain = re.sub(r"[^A-Za-z0-9_=]+", "-", text).strip("-")[:limit]
    if plain and plain.replace("-", "/") == text == text.lower() and not looks_digested(plain):
        return plain
    return with_digest(plain or "x", text)
