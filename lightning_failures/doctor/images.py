"""From the images of the model to those of the encoders: normalisation and preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_failures.core.arrays import finite_rows
from lightning_failures.core.rng import isolated_rng, seed_all
from lightning_failures.doctor.dry_run import CheckContext, LoaderNotes
from lightning_failures.doctor.findings import Finding, ok, problem, skipped, warning
from lightning_failures.encoders.preprocessing import Preprocessing
from lightning_failures.errors import DataError
from lightning_failures.trainer.image_space import ImageSpace, find_normalization

MAX_CROPPED = 0.25
"""Largest share of an image that may be cut off without a warning."""

MIN_RANGE = 0.4
"""Smallest range of pixel values without a warning."""

NORMALIZATIONS = {
    "none": ((0.0,), (1.0,)),
    "values from 0 to 255": ((0.0,), (1 / 255,)),
    "values from -1 to 1": ((0.5,), (0.5,)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP's": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10's (another)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100's": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "MNIST's": ((0.1307,), (0.3081,)),
}
"""Common normalisations by name: (mean, std)."""


def check_images(context: CheckContext) -> Iterator[Finding]:
    """Check that normalisation can be undone, transforms are deterministic, and encoders see whole images."""
    for index, notes in enumerate(context.notes):
        if notes.images is not None and not (
            context.callback.encoder is None and context.callback.robust_encoder is None
        ):
            where = f"loader {index}: " if len(context.notes) > 1 else ""
            yield from _check_normalization(context, notes, notes.images, where)
            yield from _check_determinism(context, notes, where)
    seen = context.notes[0].images if context.notes else None
    if seen is None:
        yield skipped("no images were read")
        return
    for cached in context.cached_encoders.values():
        preprocessing = getattr(cached.encoder, "preprocessing", None)
        if isinstance(preprocessing, Preprocessing):
            description, lost = describe_preprocessing(preprocessing, *seen.shape[-2:])
            message = f"{cached.encoder.name}: {description}"
            remedy = "Edges of the images are ignored. Resize to a square in the transform of validation."
            yield warning(message, remedy) if lost > MAX_CROPPED else ok(message)


def _check_normalization(context: CheckContext, notes: LoaderNotes, images: Tensor, where: str) -> Iterator[Finding]:
    space, own = context.reader.space(notes.dataset), find_normalization(notes.dataset)
    source = "the dataset's transforms" if own else ""
    if context.callback.normalization is not None:
        source = "normalization=..."
    # undo the normalisation that the callback would undo, and see whether 8-bit images come out
    how = f"undone: mean {_numbers(space.mean)}, std {_numbers(space.std)} from {source}" if source else "none found"
    suggestion = _suggestion(images, space, own)
    try:
        unit = space.to_unit(images)
    except DataError as error:
        yield problem(where + str(error), suggestion)
        return
    if space.doubt is not None:
        yield warning(where + space.doubt)
    usable = finite_rows(unit)
    if not usable.all():
        yield warning(
            f"{where}{int((~usable).sum())} of {len(unit)} images hold NaN or infinite values, or lie far outside"
            " [0, 1] unlike the others. They will be left out.",
            "Check how the dataset reads them.",
        )
        if not usable.any():
            return
    low, high = (float(bound) for bound in unit[usable].aminmax())
    if suggestion:
        yield warning(
            f"{where}normalisation {how}. The result is not 8-bit images, but with another normalisation it would be.",
            suggestion,
        )
    elif high - low < MIN_RANGE:
        yield warning(
            f"{where}normalisation {how}. Images then range only from {low:.2f} to {high:.2f}: is it the right one?",
            "Pass normalization=(mean, std) of your transform.",
        )
    else:
        levels = ", in the 256 steps of 8-bit images" if _on_grid(unit) else ""
        yield ok(
            f"{where}normalisation {how}; images then range from {low:.2f} to {high:.2f}{levels}", low=low, high=high
        )


def _suggestion(images: Tensor, space: ImageSpace, own: ImageSpace | None) -> str:
    """Return the remedy if another known normalisation gives 8-bit images and this one does not; else empty."""
    if _gives_8_bit_images(space, images):
        return ""
    if own is not None and _gives_8_bit_images(own, images):
        return "Remove normalization=...: the one in the transforms of the dataset fits."
    usual = matching_normalization(images)
    if usual is None:
        return ""
    mean, std = NORMALIZATIONS[usual]
    return f"It looks like {usual}: pass normalization=({list(mean)}, {[round(s, 5) for s in std]})"


def _gives_8_bit_images(space: ImageSpace, images: Tensor) -> bool:
    try:
        return _on_grid(space.to_unit(images))
    except DataError:
        return False


def matching_normalization(images: Tensor) -> str | None:
    """Return the name of the common normalisation that gives 8-bit images when undone, or None.

    >>> pixels = torch.arange(256.0).reshape(1, 1, 16, 16) / 255
    >>> matching_normalization((pixels - 0.1307) / 0.3081), matching_normalization(pixels * 0.777)
    ("MNIST's", None)
    """
    fitting = (
        name for name, (mean, std) in NORMALIZATIONS.items() if _gives_8_bit_images(ImageSpace(mean, std), images)
    )
    return next(fitting, None)


def _on_grid(unit: Tensor) -> bool:
    """Return whether nearly all values are multiples of 1/255, as in images stored with 8 bits."""
    steps = unit[finite_rows(unit)].double() * 255
    return bool(((steps - steps.round()).abs() < 0.02).double().mean() > 0.99) and len(torch.unique(steps.round())) > 2


def _numbers(values: Sequence[float]) -> str:
    shown = values[:1] if len(set(values)) == 1 else values
    return "/".join(f"{value:.3g}" for value in shown)


def _check_determinism(context: CheckContext, notes: LoaderNotes, where: str) -> Iterator[Finding]:
    if isinstance(notes.dataset, IterableDataset) or not hasattr(notes.dataset, "__getitem__"):
        return
    first, second = (_read_again(context, notes, seed) for seed in (0, 1))
    if first is not None and second is not None and (first.shape != second.shape or not torch.equal(first, second)):
        yield warning(
            f"{where}An image read twice differs: validation has random transforms. Each image is embedded again in"
            " every epoch, and pictures differ from what was graded.",
            "Use random transforms in training only.",
        )


def _read_again(context: CheckContext, notes: LoaderNotes, seed: int) -> Tensor | None:
    with isolated_rng():  # different seeds: random transforms give different images
        seed_all(seed)
        examples = [notes.dataset[row] for row in range(min(4, len(notes.dataset)))]
        return context.reader.read(None, notes.loader.collate_fn(examples)).images


def describe_preprocessing(preprocessing: Preprocessing, height: int, width: int) -> tuple[str, float]:
    """Return what an encoder does to images of this size, and the share of an image that is cut off.

    >>> describe_preprocessing(Preprocessing(size=(224, 224)), 240, 320)
    ('240 x 320 images are resized to 224 x 299, centre cut to 224 x 224 (25% cut off)', 0.25)
    """
    size = f"{height} x {width} images"
    if preprocessing.size is None:
        return f"{size} are not resized", 0.0
    target_height, target_width = preprocessing.size
    target = f"{target_height} x {target_width}"
    if preprocessing.resize_mode == "squash":
        return f"{size} are squashed to {target}", 0.0
    if preprocessing.resize_mode == "longest":
        return f"{size} are resized and padded to {target}", 0.0
    # scale until both sides cover the target, then cut the centre out
    scale = max(target_height / height, target_width / width) / preprocessing.crop
    resized = max(round(height * scale), target_height), max(round(width * scale), target_width)
    lost = round(1 - target_height * target_width / (resized[0] * resized[1]), 2)
    if lost == 0:
        return f"{size} are {'not resized' if scale == 1 else f'resized to {target}'}, nothing is cut off", 0.0
    return f"{size} are resized to {resized[0]} x {resized[1]}, centre cut to {target} ({lost:.0%} cut off)", lost
