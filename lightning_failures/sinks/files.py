"""Files on disk: the record that is always written, whatever logger there is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from lightning_failures.atomic import write_atomically
from lightning_failures.directions import DIRECTIONS_FILE
from lightning_failures.examples import EXAMPLES_FILE
from lightning_failures.gallery import Gallery, Picture
from lightning_failures.interventions.told import interventions_markdown
from lightning_failures.records import FailureReport
from lightning_failures.runs import REPORT_FILE, analysis_name
from lightning_failures.text import (
    enrichment_markdown,
    escape_markdown,
    looks_digested,
    markdown_table,
    notes_markdown,
    tree_markdown,
    with_digest,
)

__all__ = ["FileSink", "file_name", "to_bytes", "write_report"]


@dataclass(frozen=True)
class FileSink:
    """A folder for every analysis, ``epoch=0003-step=000250/``, with report.json, report.md and images.

    The last report also lies in ``<folder>/report.json``, and beside it the directions that it tells of, for pools that
    are scored later (``<folder>/directions.safetensors``), and its table of examples
    (``<folder>/examples.safetensors``). Where the last report has none, there is no such file.
    """

    folder: Path

    def write(self, report: FailureReport, step: int) -> None:
        """Write one analysis; each file appears whole or not at all."""
        here = self.folder / analysis_name(report, step)
        write_report(report, here)  # first, in case the disk fills up
        write_atomically(here / "report.md", to_bytes(_markdown(report)))
        directions, examples = self.folder / DIRECTIONS_FILE, self.folder / EXAMPLES_FILE
        for path, saved in ((directions, report.directions), (examples, report.table)):
            if saved is None:
                path.unlink(missing_ok=True)
            else:
                saved.save(path)
        write_report(report, self.folder)

    def show(self, report: FailureReport, gallery: Gallery, step: int) -> None:
        """Add the pictures to the report, and its features."""
        here = self.folder / analysis_name(report, step)
        for picture in gallery.pictures:
            png = BytesIO()
            Image.fromarray(picture.image.permute(1, 2, 0).contiguous().numpy()).save(png, format="PNG")
            write_atomically(here / _image_file(picture), png.getvalue())
        write_report(report, here)
        write_atomically(here / "report.md", to_bytes(_markdown(report, gallery)))
        write_report(report, self.folder)


def _markdown(report: FailureReport, gallery: Gallery | None = None) -> str:
    parts = [markdown_table(report), notes_markdown(report), enrichment_markdown(report)]
    parts += [interventions_markdown(report), tree_markdown(report)]
    for picture in () if gallery is None else gallery.pictures:
        parts.append(f"![{escape_markdown(picture.caption or picture.tag)}]({_image_file(picture)})")
    return "\n\n".join(part for part in parts if part) + "\n"


def _image_file(picture: Picture) -> str:
    return f"images/{file_name(picture.tag)}.png"


def write_report(report: FailureReport, folder: Path) -> None:
    """Write ``<folder>/report.json``."""
    write_atomically(folder / REPORT_FILE, to_bytes(report.to_json()))


def to_bytes(text: str) -> bytes:
    """Encode text in which names may hold bytes that are no UTF-8 (as folder names on Linux may)."""
    return text.encode("utf-8", "backslashreplace")


def file_name(text: str, limit: int = 60) -> str:
    """Turn any text into the name of one file; different texts have different names, without regard to case too.

    >>> file_name("classes/cat"), file_name("../../etc")[:3]
    ('classes-cat', 'etc')
    """
    plain = re.sub(r"[^A-Za-z0-9_=]+", "-", text).strip("-")[:limit]
    if plain and plain.replace("-", "/") == text == text.lower() and not looks_digested(plain):
        return plain
    return with_digest(plain or "x", text)
