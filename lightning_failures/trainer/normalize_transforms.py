"""Read mean and standard deviation off the normalising transforms of the usual libraries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lightning_failures.core.rng import isolated_rng

_BYTES = 255.0
_MAX_UNIT = 2.0  # a mean or standard deviation above it is one of pixel values, not of values in [0, 1]


@dataclass(frozen=True)
class FoundTransform:
    """The normalising transform of a dataset.

    Attributes:
        name: Name of its class, with the module.
        mean: What it subtracts from images in [0, 1], one value or one for each channel; None if that is not known.
        std: What it then divides by; None if that is not known.
    """

    name: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def find_normalizing_transform(dataset: Any) -> FoundTransform | None:
    """Return the last transform of a dataset that normalises; None without one.

    The search goes through ``Compose``, ``nn.Sequential``, ``Subset`` and ``ConcatDataset``. Mean and standard
    deviation are only read where their meaning is known: torchvision's ``Normalize`` and its presets, those of
    albumentations (``max_pixel_value`` included), kornia and MONAI. A transform of another origin that is called
    ``Normalize`` is believed if it computes (x - mean) / std of its attributes on a random image; else it is found, but
    its numbers are not known.
    """
    for owner in _inner_datasets(dataset):
        for name in ("transform", "transforms"):
            found = [read for step in _flatten(getattr(owner, name, None)) if (read := _read(step)) is not None]
            if found:
                return found[-1]
    return None


def _read(step: Any) -> FoundTransform | None:
    """Return what is known of one transform; None if it does not normalise."""
    cls = type(step)
    name = f"{cls.__module__}.{cls.__qualname__}"
    known = next((base for base in cls.__mro__ if (_library(base), base.__name__) in _READERS), None)
    if known is None:
        return _tried(step, name) if cls.__name__ == "Normalize" else None
    if _computes_otherwise(cls, known):
        return FoundTransform(name)
    try:
        mean_and_std = _READERS[_library(known), known.__name__](step)
        if mean_and_std is None:
            return FoundTransform(name)
        mean, std = (_floats(values) for values in mean_and_std)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):  # another version of the library
        return FoundTransform(name)
    size = max(len(mean), len(std))
    mean, std = (values * size if len(values) == 1 else values for values in (mean, std))
    if len(mean) != len(std) or size not in (1, 3) or not min(std) > 0:
        return FoundTransform(name)
    return FoundTransform(name, mean, std)


def _tried(step: Any, name: str) -> FoundTransform:
    """Return a transform that is called ``Normalize``, with its numbers if it uses them as that name suggests."""
    try:
        mean, std = _floats(step.mean), _floats(step.std)
        if len(mean) != len(std) or len(mean) not in (1, 3) or not min(std) > 0 or not _standardizes(step, mean, std):
            return FoundTransform(name)
    except Exception:  # of the user's transform
        return FoundTransform(name)
    return FoundTransform(name, mean, std)


def _standardizes(step: Any, mean: Sequence[float], std: Sequence[float]) -> bool:
    """Return whether a transform computes (x - mean) / std; it is called once, on a random image."""
    with suppress(TypeError):  # no weak reference to it, or no hash
        if step in _STANDARDIZES:
            return _STANDARDIZES[step]
    image = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    with isolated_rng(), torch.no_grad():
        given = step(image.clone())
    shift, scale = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))
    same = torch.allclose(torch.as_tensor(given).float(), (image - shift) / scale, atol=1e-4)
    with suppress(TypeError):
        _STANDARDIZES[step] = same
    return same


_STANDARDIZES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Transforms that were tried: a space is asked for in every batch."""


def _computes_otherwise(cls: type, known: type) -> bool:
    """Return whether a class derived from a known transform replaces its computation."""
    methods = ("__call__", "forward", "transform", "_transform", "apply", "apply_transform")
    return any(getattr(cls, name, None) is not getattr(known, name, None) for name in methods)


def _of_attributes(step: Any) -> tuple[Any, Any] | None:
    """Read torchvision's and kornia.enhance's ``Normalize``, and torchvision's presets."""
    return step.mean, step.std


def _of_albumentations(step: Any) -> tuple[Any, Any] | None:
    """Read albumentations' ``Normalize``: (pixel - mean * max_pixel_value) / (std * max_pixel_value)."""
    form = getattr(step, "normalization", "standard")
    if form in ("min_max", "min_max_per_channel"):  # maps the darkest pixel to 0 and the brightest to 1
        return (0.0,), (1.0,)
    if form != "standard" or getattr(step, "p", 1.0) < 1:
        return None
    largest = float(step.max_pixel_value)
    return _in_unit([m * largest for m in _floats(step.mean)], [s * largest for s in _floats(step.std)], largest)


def _of_kornia(step: Any) -> tuple[Any, Any] | None:
    """Read kornia.augmentation's ``Normalize``, which keeps its numbers in ``flags``."""
    if getattr(step, "p", 1.0) < 1 or getattr(step, "p_batch", 1.0) < 1:
        return None
    return step.flags["mean"], step.flags["std"]


def _of_monai(step: Any) -> tuple[Any, Any] | None:
    """Read MONAI's ``NormalizeIntensity``; without numbers it standardises each image by itself."""
    inner = getattr(step, "normalizer", step)  # the form for dictionaries holds the other one
    if inner.subtrahend is None or inner.divisor is None or inner.nonzero:
        return None
    return _in_unit(_floats(inner.subtrahend), _floats(inner.divisor), 1.0)


def _in_unit(mean: Sequence[float], std: Sequence[float], largest: float) -> tuple[Any, Any]:
    """Return the numbers for images in [0, 1], from those for pixel values up to ``largest`` or, it seems, 255."""
    is_of_bytes = largest <= 1 and max(*mean, *std) > _MAX_UNIT
    scale = _BYTES if is_of_bytes else largest
    return [m / scale for m in mean], [s / scale for s in std]


_READERS = {
    ("torchvision", "Normalize"): _of_attributes,
    ("torchvision", "ImageClassification"): _of_attributes,
    ("albumentations", "Normalize"): _of_albumentations,
    ("kornia.augmentation", "Normalize"): _of_kornia,
    ("kornia.enhance", "Normalize"): _of_attributes,
    ("monai", "NormalizeIntensity"): _of_monai,
    ("monai", "NormalizeIntensityd"): _of_monai,
}


def _library(cls: type) -> str:
    first, _, rest = cls.__module__.partition(".")
    return f"kornia.{rest.partition('.')[0]}" if first == "kornia" else first


def _inner_datasets(dataset: Any) -> Iterable[Any]:
    while dataset is not None:
        yield dataset
        concatenated = getattr(dataset, "datasets", None)
        dataset = concatenated[0] if concatenated else getattr(dataset, "dataset", None)


def _flatten(transform: Any) -> Iterable[Any]:
    if transform is None:
        return
    inner = getattr(transform, "transforms", None)  # Compose
    if type(transform).__name__ == "StandardTransform":  # the wrapper of torchvision's datasets
        inner = transform.transform
    if isinstance(transform, torch.nn.Sequential):  # kornia's containers among them
        inner = list(transform)
    if inner is None:
        yield transform
    else:
        for step in inner if isinstance(inner, Sequence | torch.nn.ModuleList) else [inner]:
            yield from _flatten(step)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in torch.as_tensor(values, dtype=torch.float64).reshape(-1))
