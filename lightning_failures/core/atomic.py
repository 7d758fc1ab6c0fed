"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"
"""What the names of files end with that are being written, or that a killed process has left."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` at the end of the block; after an error nothing of it is left.

    It is written beside its place and reaches the disk before it is moved there, so that no reader, and no crash of
    the machine, ever sees half of it under its name.

    >>> import tempfile
    >>> place = Path(tempfile.mkdtemp()) / "name"
    >>> with replacing(place) as file:
    ...     _ = file.write(b"all of it")
    ...     place.exists()
    False
    >>> place.read_bytes()
    b'all of it'
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
        with contextlib.suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file as :func:`replacing` does."""
    with replacing(path) as file:
        file.write(content)
