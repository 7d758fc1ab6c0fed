"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_BLOCK = 1 << 20  # bytes copied at once

TEMPORARY = ".tmp"
"""Suffix of files that are being written, or were left unfinished by a killed process."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` at the end of the block; after an error it is removed.

    The file is written under a temporary name in the same folder and synced to disk before it is renamed, so that
    neither a reader nor a crash of the machine leaves a partial file under its final name.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "name"
    >>> with replacing(path) as file:
    ...     _ = file.write(b"content")
    ...     path.exists()
    False
    >>> path.read_bytes()
    b'content'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".writing-{uuid.uuid4().hex}{TEMPORARY}"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # report the first error, not one of the clean-up
            temporary.unlink(missing_ok=True)
        raise


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file; the copy appears whole or not at all."""
    with source.open("rb") as read, replacing(target) as written:
        while block := read.read(_BLOCK):
            written.write(block)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with replacing(path) as file:
        file.write(content)
