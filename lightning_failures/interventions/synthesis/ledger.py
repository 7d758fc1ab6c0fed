"""The ledger of generated images: where each came from, which were dropped and why, and the PNG files of the others.

Layout: ``<folder>/ledger.jsonl``, one line an image, only ever appended to, and ``<folder>/images/<row>.png``. A PNG is
written, whole, before its line, so a line that names a file can rely on it; a last line that a kill has torn is ignored
by readers and cut off by the next writer. Each PNG says the same as its line, in text chunks that travel with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.serialization import from_jsonable, json_key, read_json
from lightning_failures.errors import DataError, GeneratorError

_NAME = "ledger.jsonl"
_IMAGES = "images"


@dataclass(frozen=True)
class LedgerRow:
    """One generated image.

    Attributes:
        model: Name of the generator.
        licence: Of its weights.
        prompt: The caption that it was given, or that decoding set out from.
        seed: That it was given.
        class_index: The class whose label the image bears.
        class_name: The same in words.
        direction: What was asked for: ``"hard caption"``, ``"hard direction, decoded at 0.2 of the arc"``, ...
        direction_epoch: Epoch of the analysis that found the direction, None if unknown.
        epoch: The epoch of training that it was made for.
        decision_value: By the direction of its class, negative = hard; None where it has none.
        dropped: Why the image is not used, None if it is. Only images that are used have a file.
        file: Place of the PNG within the folder, None without one. Set by the ledger.
        synthetic: Always true.
    """

    model: str
    licence: str
    prompt: str
    seed: int
    class_index: int = field(metadata={"key": "class"})
    class_name: str
    direction: str
    direction_epoch: int | None
    epoch: int
    decision_value: float | None = None
    dropped: str | None = None
    file: str | None = None
    synthetic: bool = True

    def to_dict(self) -> dict[str, str | int | float | bool | None]:
        """Plain values; ``class`` is the index of the class."""
        return {json_key(one): getattr(self, one.name) for one in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> LedgerRow:
        """Read what :meth:`to_dict` gave. Keys of later versions are ignored.

        Raises:
            DataError: A value lacks, or is of another type.

        >>> row = LedgerRow("model", "mit", "a red three", 7, 3, "three", "hard caption", 1, 2)
        >>> LedgerRow.from_dict(row.to_dict() | {"of a later version": 1}) == row
        True
        """
        return from_jsonable(cls, data)


class Ledger:
    """Rows in the order in which they were made, numbered from 0. One process writes; any number may read.

    Args:
        folder: Made at the first :meth:`append`.

    >>> import tempfile
    >>> ledger = Ledger(tempfile.mkdtemp())
    >>> row = LedgerRow("model", "mit", "a red three", 7, 3, "three", "hard caption", 1, 2)
    >>> ledger.append(row, torch.zeros(3, 8, 8, dtype=torch.uint8))
    0
    >>> ledger[0].file, ledger.image(0).shape
    ('images/000000.png', torch.Size([3, 8, 8]))
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._rows: list[LedgerRow] = []
        self._images: list[int] = []  # rows with a file
        self._read = 0  # bytes of whole lines that are known

    @property
    def rows(self) -> list[LedgerRow]:
        """All rows that are on disk by now."""
        self.refresh()
        return list(self._rows)

    @property
    def images(self) -> list[int]:
        """The rows that have an image, in their order."""
        self.refresh()
        return list(self._images)

    def row_of_image(self, number: int) -> int:
        """The row of the image with this number among the images, which never changes."""
        if number >= len(self._images):
            self.refresh()
        if not 0 <= number < len(self._images):
            raise IndexError(f"the ledger in {self.folder} has {len(self._images)} images, no image {number}")
        return self._images[number]

    def __len__(self) -> int:
        self.refresh()
        return len(self._rows)

    def __getitem__(self, row: int) -> LedgerRow:
        if row >= len(self._rows):
            self.refresh()
        if not 0 <= row < len(self._rows):
            raise IndexError(f"the ledger in {self.folder} has {len(self._rows)} rows, no row {row}")
        return self._rows[row]

    def refresh(self) -> None:
        """Read the lines that another process has appended; one without an end is none.

        Raises:
            DataError: A line that this package has not written.
        """
        if self._size() < self._read:  # purged
            self._rows, self._images, self._read = [], [], 0
        if self._size() == self._read:
            return
        with (self.folder / _NAME).open("rb") as file:
            file.seek(self._read)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                row = LedgerRow.from_dict(read_json(line))
            except DataError as error:
                raise DataError(
                    f"line {len(self._rows) + 1} of {self.folder / _NAME} is damaged ({error}). Mend it, or remove all"
                    " images with lightning_failures.interventions.synthesis.ledger.purge(folder)."
                ) from error
            if row.file is not None:
                self._images.append(len(self._rows))
            self._rows.append(row)
            self._read += len(line)

    def append(self, row: LedgerRow, image: Tensor | None = None) -> int:
        """Add a row, and write its image; return the number of the row.

        Args:
            row: Its ``file`` is set here.
            image: (3, H, W) uint8, or None for one that was dropped.

        Raises:
            GeneratorError: The disk is full or refuses; the ledger is as it was before.
        """
        number = self._writable()
        file = None if image is None else f"{_IMAGES}/{number:06d}.png"
        value = row.decision_value
        row = dataclasses.replace(
            row, file=file, decision_value=None if value is None or not math.isfinite(value) else float(value)
        )
        try:
            if image is not None:
                write_atomically(self._path(number), _png(image, row))
            self._append_line((json.dumps(row.to_dict()) + "\n").encode())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._path(number).unlink(missing_ok=True)
            raise GeneratorError(
                f"A generated image could not be kept in {self.folder}: {error.strerror or error}. What was made before"
                " is there, and a run that is resumed goes on from it. Free some space, or purge images of former runs."
            ) from error
        self.refresh()
        return number

    def image(self, row: int) -> Tensor:
        """Return the image of a row: (3, H, W) uint8.

        Raises:
            DataError: It has none, or the file is gone.
        """
        if self[row].file is None:
            raise DataError(f"row {row} of the ledger in {self.folder} has no image: {self[row].dropped}")
        try:
            with Image.open(self._path(row)) as image:
                pixels = np.array(image.convert("RGB"))
        except Exception as error:  # whatever Pillow makes of a damaged file
            raise DataError(f"the image of row {row} cannot be read: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def has_image(self, row: int) -> bool:
        """Whether the file of a row is there."""
        return self[row].file is not None and self._path(row).is_file()

    def _size(self) -> int:
        """Bytes of the ledger."""
        path = self.folder / _NAME
        return path.stat().st_size if path.is_file() else 0

    def _path(self, row: int) -> Path:
        """Never of any text in the row."""
        return self.folder / _IMAGES / f"{row:06d}.png"

    def _writable(self) -> int:
        """Cut off a torn last line; return the number of the next row."""
        self.refresh()
        if self._size() > self._read:
            os.truncate(self.folder / _NAME, self._read)
        return len(self._rows)

    def _append_line(self, line: bytes) -> None:
        path = self.folder / _NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("ab", buffering=0) as file:
                written = file.write(line)
                if written != len(line):
                    raise OSError(None, f"only {written} of {len(line)} bytes were written")
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, self._read)
            raise


def purge(folder: str | Path) -> int:
    """Remove a ledger and its images, and nothing else; return the number of images.

    >>> purge("a folder that is not there")
    0
    """
    folder = Path(folder)
    images = [path for path in folder.glob(f"{_IMAGES}/*.png") if path.stem.isdecimal()]
    with contextlib.suppress(FileNotFoundError):
        (folder / _NAME).unlink()  # first, so that no line is left without its image
    for path in [*images, *folder.glob(f"{_IMAGES}/.writing-*")]:
        path.unlink(missing_ok=True)
    for place in (folder / _IMAGES, folder):
        with contextlib.suppress(OSError):  # not empty, or never there
            place.rmdir()
    return len(images)


def _png(image: Tensor, row: LedgerRow) -> bytes:
    """The bytes of a PNG whose text chunks are the values of the row, as JSON, which is plain ASCII."""
    text = PngInfo()
    for key, value in row.to_dict().items():
        text.add_text(key, json.dumps(value))
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
