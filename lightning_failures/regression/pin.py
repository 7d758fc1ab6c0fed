"""A pinned slice: its images, its direction or rule, and its error rate, as one small file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_failures.core.arrays import as_rows, finite_rows_of
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.serialization import from_jsonable, read_json
from lightning_failures.core.types import BoolArray
from lightning_failures.directions.standardize import standardize
from lightning_failures.errors import DataError
from lightning_failures.stats.rates import Rate
from lightning_failures.trees.growing import NodeSplit

PIN_SUFFIX = ".pin"
"""End of the name of the file of a pin."""

_FORMAT, _VERSION = "lightning-failures pin", 1
_FORMAT_OF_FILE = re.compile(rf"{_FORMAT} (\d{{1,9}})")
_IDENTITY = ("ids", "digests", "known")
_DIRECTION = ("weight", "mean", "std")


@dataclass(frozen=True, eq=False)
class PinnedDirection:
    """The direction of a slice, in the embedding space of its encoder.

    Attributes:
        weight: (D,) float32, unit length.
        mean: (D,) float32 that phi subtracts.
        std: (D,) float32 that phi divides by; 0 for a degenerate dimension.
        threshold: Scalar product of ``weight`` and phi below which an image is in the slice.
    """

    weight: Tensor
    mean: Tensor
    std: Tensor
    threshold: float

    def contains(self, embeddings: Any) -> BoolArray:
        """Return which embeddings (n, D) lie in the slice: (n,) bool, False for one that is not finite.

        Raises:
            DataError: The embeddings have another number of dimensions.

        >>> direction = PinnedDirection(torch.tensor([1.0, 0.0]), torch.zeros(2), torch.ones(2), threshold=0.0)
        >>> direction.contains([[-3.0, 4.0], [3.0, 4.0], [float("nan"), 0.0]]).tolist()
        [True, False, False]
        """
        x = as_rows(embeddings, "embeddings", finite=False)
        _check_width(x.shape[1], len(self.weight))
        inside = finite_rows_of(x)
        mean, std, weight = (tensor.double().numpy() for tensor in (self.mean, self.std, self.weight))
        inside[inside] = standardize(x[inside], mean, std) @ weight < self.threshold
        return inside


@dataclass(frozen=True, eq=False)
class Pin:
    """A slice of the examples of one class that must not fail again.

    Of several copies of one image only one counts, here as in every check.

    Attributes:
        name: Name of the pin: that of the failure mode, of the class, or of the class and the leaf.
        class_name: Class of the slice.
        encoder: Fingerprint of the encoder whose embeddings, or features, tell which new images are in the slice.
        encoder_name: Name of the encoder.
        ids: (m,) int64, ids of the images of the slice in the validation set of the run, for people to look at.
        digests: (m,) int64, distinct digests of the images of the slice, by which they are found again.
        known: (r,) int64, distinct digests of the other images of the class: they are not in the slice, whatever the
            direction says.
        slice: Error rate of the slice when it was pinned.
        rest: Error rate of the other images of the class when it was pinned; None without any.
        level_of: Whose error rate then the slice must not exceed: its own, because it was fixed ("slice"), or that of
            the other images of the class, because it was still open ("rest").
        direction: The direction of the slice; None for a rule.
        rule: The conditions on features that the images of the slice meet, all of them; empty for a direction.
        caption: Caption of the slice, or None.
        words: What the slice is, in one sentence.
        run: Folder of the run that the slice was pinned in.
        epoch: Epoch of its analysis.
    """

    name: str
    class_name: str
    encoder: str
    encoder_name: str
    ids: Tensor
    digests: Tensor
    known: Tensor
    slice: Rate
    rest: Rate | None
    level_of: Literal["slice", "rest"]
    direction: PinnedDirection | None = None
    rule: tuple[NodeSplit, ...] = ()
    caption: str | None = None
    words: str = ""
    run: str = ""
    epoch: int | None = None

    @property
    def level(self) -> Rate:
        """The error rate, when the slice was pinned, that the slice must not exceed."""
        return self.rest if self.level_of == "rest" and self.rest is not None else self.slice

    @property
    def source(self) -> Literal["encoder", "robust_encoder"]:
        """The option of ``FailureModes`` with the encoder of the pin."""
        return "encoder" if self.direction is not None else "robust_encoder"

    def contains(self, values: Any) -> BoolArray:
        """Return which images lie in the slice by the direction or the rule.

        Args:
            values: (n, D) embeddings of the images by the encoder of the pin; features, for a rule.

        Returns:
            (n,) bool, False for a row that is not finite.

        Raises:
            DataError: The values have another number of dimensions.
        """
        if self.direction is not None:
            return self.direction.contains(values)
        x = as_rows(values, "features", finite=False)
        _check_width(x.shape[1], 1 + max(split.feature for split in self.rule), at_least=True)
        inside = finite_rows_of(x)
        for split in self.rule:
            above = x[:, split.feature].astype(np.float32) > split.threshold  # as the tree compares
            inside &= above == split.above
        return inside

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        tensors = {name: getattr(self, name) for name in _IDENTITY}
        if self.direction is not None:
            tensors |= {name: getattr(self.direction, name) for name in _DIRECTION}
        tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        stored = _StoredPin(
            name=self.name,
            class_name=self.class_name,
            encoder=self.encoder,
            encoder_name=self.encoder_name,
            slice=self.slice,
            rest=self.rest,
            level_of=self.level_of,
            threshold=None if self.direction is None else self.direction.threshold,
            rule=self.rule,
            caption=self.caption,
            words=self.words,
            run=self.run,
            epoch=self.epoch,
        )
        text = json.dumps(asdict(stored))
        metadata = {"format": f"{_FORMAT} {_VERSION}", "pin": text, "checksum": _checksum(text, tensors)}
        write_atomically(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> Pin:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: The file is no pin, was written by a later version, or is damaged.
            OSError: The file cannot be read.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                version = _FORMAT_OF_FILE.fullmatch(metadata.get("format", ""))
                if version is None:
                    raise ValueError(f"format {metadata.get('format')!r}")
                if int(version[1]) > _VERSION:
                    raise _LaterVersionError(
                        f"{path} was written by a later version of lightning_failures (format {version[1]}; this one"
                        f" reads {_VERSION}). Upgrade lightning_failures, or pin the slice again with this version."
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if metadata["checksum"] != _checksum(metadata["pin"], tensors):
                raise ValueError("wrong checksum")
            return _rebuilt(from_jsonable(_StoredPin, read_json(metadata["pin"])), tensors)
        except (OSError, _LaterVersionError):
            raise
        except Exception as error:  # damaged files raise errors of many types
            raise DataError(
                f"{path} is no pin, or is damaged ({str(error)[:200]}). Restore the file, or pin the slice again:"
                " lightning-failures pin RUN --class NAME."
            ) from error


class _LaterVersionError(DataError):
    """The file of a pin was written by a later version."""


@dataclass(frozen=True)
class _StoredPin:
    """A pin in JSON, without its tensors."""

    name: str
    class_name: str
    encoder: str
    encoder_name: str
    slice: tuple[int, int, float]
    rest: tuple[int, int, float] | None
    level_of: str
    threshold: float | None = None
    rule: tuple[NodeSplit, ...] = ()
    caption: str | None = None
    words: str = ""
    run: str = ""
    epoch: int | None = None


def load_pins(paths: str | Path | Iterable[str | Path]) -> tuple[Pin, ...]:
    """Read pins from files, and from all ``*.pin`` files of folders, sorted by file name.

    Raises:
        DataError: A file or folder does not exist, a folder holds no pins, a file is no pin or is damaged, or was
            written by a later version.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files: list[Path] = []
    for path in map(Path, given):
        found = sorted(path.glob(f"*{PIN_SUFFIX}")) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            what = f"The folder {path} holds no *{PIN_SUFFIX} files" if path.is_dir() else f"{path} does not exist"
            raise DataError(f"{what}. Write a pin with: lightning-failures pin RUN --class NAME --output {path}")
        files += found
    try:
        return tuple(Pin.load(file) for file in dict.fromkeys(files))
    except OSError as error:
        raise DataError(f"A pin cannot be read: {error}") from error


def _rebuilt(stored: _StoredPin, tensors: dict[str, Tensor]) -> Pin:
    """Return the pin if its tensors and numbers agree.

    Raises:
        ValueError: They do not.
    """
    direction = None
    if stored.threshold is not None:
        direction = PinnedDirection(**{name: tensors[name] for name in _DIRECTION}, threshold=stored.threshold)
        if len({tuple(tensors[name].shape) for name in _DIRECTION}) != 1 or direction.weight.ndim != 1:
            raise ValueError("the tensors of the direction differ in shape")
    elif not stored.rule:
        raise ValueError("neither a direction nor a rule")
    ids, digests, known = (tensors[name] for name in _IDENTITY)
    if any(one.dtype != torch.int64 or one.ndim != 1 for one in (ids, digests, known)) or len(ids) != len(digests):
        raise ValueError("wrong ids or digests")
    rates = [None if one is None else Rate(*one) for one in (stored.slice, stored.rest)]
    for rate in rates:
        if rate is not None and not (0 <= rate.failures <= rate.examples and 0 < rate.effective <= rate.examples):
            raise ValueError("an error rate is not in [0, 1]")
    of_slice, of_rest = rates
    assert of_slice is not None
    return Pin(
        name=stored.name,
        class_name=stored.class_name,
        encoder=stored.encoder,
        encoder_name=stored.encoder_name,
        ids=ids,
        digests=digests,
        known=known,
        slice=of_slice,
        rest=of_rest,
        level_of="rest" if stored.level_of == "rest" else "slice",
        direction=direction,
        rule=stored.rule,
        caption=stored.caption,
        words=stored.words,
        run=stored.run,
        epoch=stored.epoch,
    )


def _check_width(width: int, wanted: int, *, at_least: bool = False) -> None:
    if width < wanted or (width > wanted and not at_least):
        raise DataError(
            f"The pin needs {'at least ' if at_least else ''}{wanted} dimensions, got {width}: the values are those of"
            " another encoder. Give the embeddings of the encoder that the slice was pinned with."
        )


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    hasher = xxhash.xxh3_128(text.encode())
    for name, tensor in sorted(tensors.items()):
        hasher.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        hasher.update(tensor.contiguous().numpy().tobytes())
    return hasher.hexdigest()
