"""Generated images as training examples: a dataset of the ledger, in the form of the user's own examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lightning_failures.data.grading import IMAGE_KEYS, LABEL_KEYS
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.synthesis.ledger import Ledger, left_out_sentence

MakeItem = Callable[[Image.Image, int], Any]
"""From an RGB image and the index of its class to a training example."""

_SAMPLED_EXAMPLES = 4  # training examples read to find the range of their values
_MAX_SCALE = 10.0  # values larger than those of training images by this factor have another scale


class SyntheticImages(Dataset[Any]):
    """The images of a ledger with their labels; example k is the k-th image, and rows without an image do not count.

    Images added after this object was made, or copied into a worker, are found when they are read.

    Args:
        folder: Folder of the ledger.
        make_item: Makes a training example; must be picklable if workers are spawned.

    Raises:
        IndexError: On reading: there is no such image.
        DataError: On reading: its file is missing, damaged, or the image of another row.
    """

    def __init__(self, folder: str | Path, make_item: MakeItem) -> None:
        self.ledger = Ledger(folder)
        self.make_item = make_item

    def __len__(self) -> int:
        return len(self.ledger.images)

    @property
    def unusable(self) -> NDArray[np.int64]:
        """The examples, ascending, whose image is missing, damaged, or that of another row."""
        return np.flatnonzero(np.isin(self.ledger.images, self.ledger.without_own_image))

    @property
    def left_out(self) -> str | None:
        """A sentence that counts and names these examples, or None if there are none."""
        return left_out_sentence(self.ledger)

    def __getitem__(self, number: int) -> Any:
        row = self.ledger.row_of_image(int(number))
        return self.make_item(as_pil(self.ledger.image(row)), self.ledger[row].class_index)


def as_pil(image: Tensor) -> Image.Image:
    """Convert (3, H, W) uint8 to an RGB image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


@dataclass
class ItemForm:
    """Makes training examples that collate with the user's.

    Attributes:
        transform: The user's transform, or None.
        training: A training example, whose types are copied.
        span: Lowest and highest value of some training images. Without a transform floats must be in [0, 1], because
            their normalisation is unknown.

    Example:
        >>> training = [(torch.zeros(3, 8, 8), 1)]
        >>> form = item_form(training, lambda image: torch.tensor(np.array(image)).permute(2, 0, 1) / 255)
        >>> image, label = form(Image.new("RGB", (8, 8)), 4)
        >>> image.shape, label
        (torch.Size([3, 8, 8]), 4)
    """

    transform: Callable[[Any], Any] | None
    training: Any
    span: tuple[float, float]
    _way: int = field(default=0, repr=False, compare=False)  # index of the input form that worked last

    def __call__(self, image: Image.Image, label: int) -> Any:
        """Make one example.

        Raises:
            ConfigurationError: The transform gives no image like those of the training set.
        """
        example, own, _ = _image_and_label(self.training)
        found = self._transformed(image, example)
        name = _label_like(own, label)
        if isinstance(self.training, Mapping):
            return {key: name if key in LABEL_KEYS else found for key in self.training}
        make = getattr(type(self.training), "_make", type(self.training))  # a named tuple has its own way
        return make((found, name))

    def _transformed(self, image: Image.Image, example: Any) -> Any:
        tried = []
        last_first = sorted(range(len(_WAYS)), key=lambda way: way != self._way)
        for way in last_first:
            description, change = _WAYS[way]
            try:
                given = change(image)
                found = given if self.transform is None else self.transform(given)
            except Exception as error:  # the user's transform may not support this input
                tried.append(f"of {description}: {type(error).__name__}")
                continue
            if _alike(found, example, self.span, transformed=self.transform is not None):
                self._way = way
                return found
            tried.append(f"of {description}: {_describe(found)}")
        what = "No transform was found, and a generated image" if self.transform is None else "The transform"
        raise ConfigurationError(
            f"AddSynthetic: training images are {_describe(example)}. {what} of {image.width} x {image.height} pixels"
            f" gives {'; '.join(tried)}. Give transform=, which turns a PIL image into such an image (with a Resize, if"
            " sizes differ), or make_item=, (image, label) -> a whole example."
        )


def item_form(training_set: Any, transform: Callable[[Any], Any] | None = None) -> ItemForm:
    """Return the form of the examples of a training set.

    Random transforms draw from the global generators: isolate them around this call.

    Args:
        training_set: Its examples are tuples (image, label), or mappings with one of the keys image, images, x,
            pixel_values and one of label, labels, target, y.
        transform: From a generated image to an input of the model. None: the ``transform`` of the training set, also
            inside wrappers such as ``Subset``.

    Raises:
        ConfigurationError: Examples of another form, or parts of the training set with different transforms.
    """
    examples = [training_set[k] for k in range(min(_SAMPLED_EXAMPLES, len(training_set)))]
    if not examples:
        raise ConfigurationError("AddSynthetic: the training set is empty, so the form of its examples is unknown.")
    images = []
    for example in examples:
        image, label, extra = _image_and_label(example)
        if extra:
            raise ConfigurationError(
                f"AddSynthetic: training examples hold more than an image and a label ({extra}), which is unknown for a"
                " generated image. Give make_item=, (image, label) -> a whole example."
            )
        _label_like(label, 0)
        images.append(image)
    spans = [_span(image) for image in images]
    span = min(low for low, _ in spans), max(high for _, high in spans)
    return ItemForm(find_transform(training_set) if transform is None else transform, examples[0], span)


def find_transform(dataset: Any) -> Callable[[Any], Any] | None:
    """Return the ``transform`` of a dataset, also inside ``Subset``, ``ConcatDataset`` and the like; None without one.

    Raises:
        ConfigurationError: Joined datasets have different transforms.
    """
    own = getattr(dataset, "transform", None)
    if callable(own):
        return own  # type: ignore[no-any-return]
    parts = getattr(dataset, "datasets", None)
    if isinstance(parts, list):
        found = [find_transform(part) for part in parts]
        if any(repr(one) != repr(found[0]) for one in found):
            raise ConfigurationError(
                "AddSynthetic: the datasets joined for training have different transforms. Give transform=, from a"
                " generated image to an input of the model."
            )
        return found[0] if found else None
    inner = getattr(dataset, "dataset", None)
    return None if inner is None else find_transform(inner)


def _image_and_label(example: Any) -> tuple[Any, Any, str]:
    """Return image, label, and a description of all else in an example, "" if there is nothing else."""
    if isinstance(example, Mapping):
        image, label = (next((key for key in keys if key in example), None) for keys in (IMAGE_KEYS, LABEL_KEYS))
        if image is not None and label is not None:
            return example[image], example[label], ", ".join(str(key) for key in example if key not in (image, label))
    elif isinstance(example, tuple | list) and len(example) >= 2:
        extra = f"{len(example)} elements" if len(example) > 2 else ""
        return example[0], example[1], extra
    raise ConfigurationError(
        f"AddSynthetic: a training example is a {type(example).__name__}, neither (image, label) nor a mapping with"
        " keys such as image and label. Give make_item=, (image, label) -> a whole example."
    )


def _pixels(image: Image.Image) -> Tensor:
    """Return the pixels of an image, (3 or 1, H, W) uint8."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


_WAYS: tuple[tuple[str, Callable[[Image.Image], Any]], ...] = (
    ("a PIL image", lambda image: image),
    ("a uint8 tensor", _pixels),
    ("a float tensor", lambda image: _pixels(image).float() / 255),
    ("a gray PIL image", lambda image: image.convert("L")),
    ("a gray uint8 tensor", lambda image: _pixels(image.convert("L"))),
    ("a gray float tensor", lambda image: _pixels(image.convert("L")).float() / 255),
)
"""Forms of input that transforms accept, with a description."""


def _span(image: Any) -> tuple[float, float]:
    """Return the lowest and the highest value."""
    values = image.detach().cpu().double().numpy() if isinstance(image, Tensor) else np.asarray(image)
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def _alike(found: Any, example: Any, span: tuple[float, float], *, transformed: bool) -> bool:
    """Return whether a transformed image has the type, shape and scale of a training image."""
    if isinstance(example, Image.Image):
        return isinstance(found, Image.Image) and found.mode == example.mode
    kind = Tensor if isinstance(example, Tensor) else np.ndarray
    if not isinstance(example, kind) or not isinstance(found, kind):
        return False
    if found.dtype != example.dtype or found.shape != example.shape:
        return False
    if example.dtype in (torch.uint8, np.uint8):
        return True
    if not transformed:
        return span[0] >= 0 and span[1] <= 1
    return max(map(abs, _span(found))) <= _MAX_SCALE * (max(map(abs, span)) + 1)


def _describe(image: Any) -> str:
    if isinstance(image, Tensor | np.ndarray):
        low, high = _span(image)
        return f"{image.dtype} {tuple(image.shape)} in {low:.3g} ... {high:.3g}"
    mode = f" {image.mode}" if isinstance(image, Image.Image) else ""
    return f"{type(image).__name__}{mode}"


def _label_like(example: Any, label: int) -> Any:
    """Return a label in the type of a training example's label, which may be one-hot."""
    if isinstance(example, bool | int | float | np.generic):
        return type(example)(label)
    if isinstance(example, Tensor | np.ndarray):
        new = (
            partial(torch.full, dtype=example.dtype)
            if isinstance(example, Tensor)
            else partial(np.full, dtype=example.dtype)
        )
        if example.ndim == 0 or tuple(example.shape) == (1,):
            return new(tuple(example.shape), label)
        if (
            example.ndim == 1
            and label < len(example)
            and sorted(set(example.tolist())) == [0, 1]
            and example.sum() == 1
        ):
            one_hot = new(tuple(example.shape), 0)
            one_hot[label] = 1
            return one_hot
    raise ConfigurationError(
        f"AddSynthetic: the label of a training example is a {type(example).__name__}, neither a class nor one-hot."
        " Give make_item=, (image, label) -> a whole example."
    )
