"""Folders: whether they can be written, and how much room is left."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


def why_not_writable(folder: Path) -> str:
    """Return why a folder cannot be written; empty if it can. The folder need not exist yet.

    A temporary file is written to the folder, or to its nearest existing parent.

    >>> why_not_writable(Path(tempfile.gettempdir()) / "not" / "yet" / "there")
    ''
    """
    existing = _existing(folder)
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        return f"{existing}: {error.strerror or error}"
    return ""


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes on the disk of a folder, which need not exist yet; None if unknown."""
    try:
        return shutil.disk_usage(_existing(folder)).free
    except OSError:
        return None


def _existing(folder: Path) -> Path:
    folder = folder.expanduser().absolute()
    return next((place for place in (folder, *folder.parents) if place.exists()), folder)


def bytes_text(count: float) -> str:
    """Format a size for people.

    >>> [bytes_text(n) for n in (900, 1_530_000, 51e9)]
    ['900 bytes', '1.5 MB', '51 GB']
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2g} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} bytes"


def seconds_text(seconds: float) -> str:
    """Format a time for people in two significant digits, the accuracy of an estimate.

    >>> [seconds_text(t) for t in (0.0312, 4.24, 75, 5000, 200_000)]
    ['0.03 s', '4.2 s', '75 s', '83 min', '56 h']
    """
    if seconds >= 7200:
        return f"{seconds / 3600:.0f} h"
    if seconds >= 100:
        return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds / 60:.1f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"
