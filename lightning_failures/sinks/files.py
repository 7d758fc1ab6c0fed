"""Files on disk: the record that is always written, whatever logger there is."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

from PIL import Image

from lightning_failures.records import FailureReport
from lightning_failures.text import markdown_table, tree_markdown
from lightning_failures.visuals import Picture

__all__ = ["FileSink", "file_name", "write_atomically", "write_report"]


@dataclass(frozen=True)
class FileSink:
    """A folder for every analysis, ``epoch=0003-step=000250/``, with report.json, report.md and images.

    The last report also lies in ``<folder>/report.json``.
    """

    folder: Path

    def write(self, report: FailureReport, pictures: Sequence[Picture], step: int) -> None:
        """Write one analysis; each file appears whole or not at all."""
        here = self.folder / f"epoch={report.epoch or 0:04d}-step={step:06d}"
        for picture in pictures:
            png = BytesIO()
            Image.fromarray(picture.image.permute(1, 2, 0).contiguous().numpy()).save(png, format="PNG")
            write_atomically(here / "images" / f"{file_name(picture.tag)}.png", png.getvalue())
        write_atomically(here / "report.md", f"{markdown_table(report)}\n\n{tree_markdown(report)}\n".encode())
        write_report(report, here)
        write_report(report, self.folder)


def write_report(report: FailureReport, folder: Path) -> None:
    """Write ``<folder>/report.json``."""
    write_atomically(folder / "report.json", report.to_json().encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there, so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def file_name(text: str, limit: int = 60) -> str:
    """Turn any text into the name of one file; different texts have different names.

    >>> file_name("classes/cat"), file_name("../../etc")[:3]
    ('classes-cat', 'etc')
    """
    plain = re.sub(r"[^A-Za-z0-9_=]+", "-", text).strip("-")[:limit]
    if plain and plain.replace("-", "/") == text:
        return plain
    return f"{plain or 'x'}-{blake2b(text.encode('utf-8', 'replace'), digest_size=4).hexdigest()}"
