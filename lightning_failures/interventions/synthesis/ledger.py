"""The ledger of generated images: the origin of each, why some were dropped, and the PNG files of the others.

Layout: ``<folder>/ledger.jsonl``, one line per image, append-only, and ``<folder>/images/<row>.png``. A PNG is written
completely before its line, so the file of a line always exists; an incomplete last line, left by a kill, is ignored by
readers and removed by the next writer. Each PNG contains the values of its line in text chunks; an image whose values
are those of another row is not an image of its row. Processes that append at the same time take turns.
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

from lightning_failures.core.atomic import copy_atomically, write_atomically
from lightning_failures.core.locks import locked
from lightning_failures.core.serialization import from_jsonable, json_key, read_json
from lightning_failures.errors import DataError, GeneratorError

_NAME = "ledger.jsonl"
_IMAGES = "images"
_LOCK = ".appending"
MAX_NAMED = 20
"""Most rows that a message names."""


@dataclass(frozen=True)
class LedgerRow:
    """One generated image.

    Attributes:
        model: Name of the generator.
        licence: Licence of its weights.
        prompt: The caption given to the generator, or from which decoding started.
        seed: The seed given to the generator.
        class_index: Label of the image.
        class_name: Name of the class.
        direction: Description of the prompt: ``"hard caption"``, ``"hard direction, decoded at 0.2 of the arc"``, ...
        direction_epoch: Epoch of the analysis that found the direction, None if unknown.
        epoch: Epoch of training that the image was made for.
        decision_value: Decision value by the direction of its class, negative = hard; None without a direction.
        dropped: Why the image is not used, None if it is. Only used images have a file.
        file: Path of the PNG within the folder, None without one. Set by the ledger.
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
        """Return plain values; ``class`` is the index of the class."""
        return {json_key(one): getattr(self, one.name) for one in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> LedgerRow:
        """Read the result of :meth:`to_dict`; keys of later versions are ignored.

        Raises:
            DataError: A value is missing, or of another type.

        >>> row = LedgerRow("model", "mit", "a red three", 7, 3, "three", "hard caption", 1, 2)
        >>> LedgerRow.from_dict(row.to_dict() | {"of a later version": 1}) == row
        True
        """
        return from_jsonable(cls, data)


class Ledger:
    """The rows in the order in which they were made, numbered from 0. Any number of processes can read and append.

    Args:
        folder: Folder of the ledger, created by the first :meth:`append`.

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
        self._read = 0  # bytes of complete lines read so far

    @property
    def rows(self) -> list[LedgerRow]:
        """All rows that are on disk now."""
        self.refresh()
        return list(self._rows)

    @property
    def images(self) -> list[int]:
        """The rows with an image, in ascending order."""
        self.refresh()
        return list(self._images)

    def row_of_image(self, number: int) -> int:
        """Return the row of the k-th image; it never changes."""
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
        """Read the complete lines that another process has appended.

        Raises:
            DataError: A line is damaged.
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
                    f"Line {len(self._rows) + 1} of {self.folder / _NAME} is damaged ({error}). Repair it, or remove"
                    " all images with lightning_failures.interventions.synthesis.ledger.purge(folder)."
                ) from error
            if row.file is not None:
                self._images.append(len(self._rows))
            self._rows.append(row)
            self._read += len(line)

    def append(self, row: LedgerRow, image: Tensor | None = None) -> int:
        """Append a row, and write its image; return the number of the row.

        Args:
            row: The row; its ``file`` is set here.
            image: (3, H, W) uint8, or None for a dropped image.

        Raises:
            GeneratorError: The image cannot be written; the ledger is unchanged.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # without locks, images that are not of their row are left out
                stack.enter_context(locked(self.folder / _LOCK))
            return self._append(row, image)

    def _append(self, row: LedgerRow, image: Tensor | None) -> int:
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
                f"A generated image could not be saved in {self.folder}: {error.strerror or error}. Earlier images are"
                " kept, and a resumed run continues from them. Free some space, or purge images of earlier runs."
            ) from error
        self.refresh()
        return number

    def image(self, row: int) -> Tensor:
        """Return the image of a row: (3, H, W) uint8.

        Raises:
            DataError: The row has no image, or the file is missing, damaged, or the image of another row.
        """
        if self[row].file is None:
            raise DataError(f"row {row} of the ledger in {self.folder} has no image: {self[row].dropped}")
        try:
            with Image.open(self._path(row)) as image:
                is_own = _is_of(image, self[row])
                pixels = np.array(image.convert("RGB"))
        except Exception as error:  # Pillow raises many kinds of errors for damaged files
            raise DataError(f"The image of row {row} of the ledger in {self.folder} cannot be read: {error}") from error
        if not is_own:
            raise DataError(
                f"The image of row {row} of the ledger in {self.folder} is that of another row: two runs have written"
                " there at the same time."
            )
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def has_image(self, row: int) -> bool:
        """Return whether a row has an image of its own: not none, and not that of another row."""
        if self[row].file is None:
            return False
        try:
            with Image.open(self._path(row)) as image:
                return _is_of(image, self[row])
        except Exception:  # Pillow raises many kinds of errors for damaged files
            return False

    @property
    def without_own_image(self) -> list[int]:
        """The rows, in ascending order, that list an image which is missing, damaged, or that of another row."""
        return [row for row in self.images if not self.has_image(row)]

    def _size(self) -> int:
        """Return the size of the ledger file in bytes."""
        path = self.folder / _NAME
        return path.stat().st_size if path.is_file() else 0

    def _path(self, row: int) -> Path:
        """Return the path of an image; it never contains text of the row."""
        return self.folder / _IMAGES / f"{row:06d}.png"

    def _writable(self) -> int:
        """Remove an incomplete last line; return the number of the next row."""
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

    >>> purge("a folder that does not exist")
    0
    """
    folder = Path(folder)
    images = [path for path in folder.glob(f"{_IMAGES}/*.png") if path.stem.isdecimal()]
    with contextlib.suppress(FileNotFoundError):
        (folder / _NAME).unlink()  # first, so that no line remains without its image
    for path in [*images, *folder.glob(f"{_IMAGES}/.writing-*"), folder / _LOCK]:
        path.unlink(missing_ok=True)
    for place in (folder / _IMAGES, folder):
        with contextlib.suppress(OSError):  # not empty, or never created
            place.rmdir()
    return len(images)


def left_out_sentence(ledger: Ledger) -> str | None:
    """Return a sentence that counts and names the rows without an image of their own; None if there are none."""
    rows = ledger.without_own_image
    if not rows:
        return None
    named = ", ".join(map(str, rows[:MAX_NAMED])) + (", ..." if len(rows) > MAX_NAMED else "")
    return (
        f"{len(rows)} of the {len(ledger.images)} generated images in {ledger.folder} are left out (rows {named}): the"
        " file is missing, damaged, or the image of another row, as when two runs have written there at the same time."
    )


def copy_ledger(source: Path, target: Path) -> None:
    """Copy a ledger to which another process may append; the copy ends with a whole row, and rows keep their numbers.

    Raises:
        OSError: The copy cannot be written.
    """
    if not (source / _NAME).is_file():
        return
    lines = (source / _NAME).read_bytes()  # first: the file of a line was written before it
    for path in sorted((source / _IMAGES).glob("*.png")):
        with contextlib.suppress(FileNotFoundError):
            copy_atomically(path, target / _IMAGES / path.name)
    write_atomically(target / _NAME, lines[: lines.rfind(b"\n") + 1])


def _is_of(image: Image.Image, row: LedgerRow) -> bool:
    """Return whether the text chunks of a PNG are the values of a row; values without a chunk are not compared."""
    values = row.to_dict()
    compared = [key for key in values if key != "file" and key in image.info]
    return all(json.loads(image.info[key]) == values[key] for key in compared)


def _png(image: Tensor, row: LedgerRow) -> bytes:
    """Return the bytes of a PNG whose text chunks are the values of the row, as JSON in ASCII."""
    text = PngInfo()
    for key, value in row.to_dict().items():
        text.add_text(key, json.dumps(value))
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, format="PNG", pnginfo=text)
    return buffer.getvalue()
