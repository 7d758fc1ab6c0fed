"""Files on disk: the record that is always written, whatever logger there is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from lightning_failures.atomic import write_atomically
from lightning_failures.directions import DIRECTIONS_FILE
from lightning_failures.interventions.told import interventions_markdown
from lightning_failures.records import FailureReport
from lightning_failures.text import (
    enrichment_markdown,
    escape_markdown,
    looks_digested,
    markdown_table,
    notes_markdown,
    tree_markdown,
    with_digest,
)
from lightning_failures.visuals import Picture

__all__ = ["FileSink", "file_name", "to_bytes", "write_report"]


@dataclass(frozen=True)
class FileSink:
    """A folder for every analysis, ``epoch=0003-step=000250/``, with report.json, report.md and images.

    The last report also lies in ``<folder>/report.json``, and the directions it tells of beside it, for pools that are
    scored later: ``<folder>/directions.safetensors``. Where the last report has no directions, there is no such file.
    """

    folder: Path

    def write(self, report: FailureReport, pictures: Sequence[Picture], step: int) -> None:
        """Write one analysis; each file appears whole or not at all."""
        name = f"epoch={report.epoch or 0:04d}-step={step:06d}"
        here = self.folder / (f"test-{name}" if report.stage == "test" else name)
        write_report(report, here)  # first, in case the disk fills up
        parts = [markdown_table(report), notes_markdown(report), enrichment_markdown(report)]
        parts += [interventions_markdown(report), tree_markdown(report)]
        for picture in pictures:
            png = BytesIO()
            Image.fromarray(picture.image.permute(1, 2, 0).contiguous().numpy()).save(png, format="PNG")
            image = f"images/{file_name(picture.tag)}.png"
            write_atomically(here / image, png.getvalue())
            parts.append(f"![{escape_markdown(picture.caption or picture.tag)}]({image})")
        write_atomically(here / "report.md", to_bytes("\n\n".join(part for part in parts if part) + "\n"))
        directions = self.folder / DIRECTIONS_FILE
        if report.directions is None:
            directions.unlink(missing_ok=True)
        else:
            report.directions.save(directions)
        write_report(report, self.folder)


def write_report(report: FailureReport, folder: Path) -> None:
    """Write ``<folder>/report.json``."""
    write_atomically(folder / "report.json", to_bytes(report.to_json()))


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
