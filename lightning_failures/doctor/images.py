"""From the images of the model to those of the encoders: normalisation and preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_failures.core.arrays import finite_rows
from lightning_failures.doctor.dry_run import CheckContext, LoaderNotes
from lightning_failures.doctor.findings import Finding, ok, problem, skipped, warning
from lightning_failures.encoders.preprocessing import Preprocessing
from lightning_failures.errors import DataError
from lightning_failures.trainer.image_space import ImageSpace, find_normalization
from lightning_failures.trainer.normalization_guard import (
    NORMALIZATIONS,
    gives_8_bit_images,
    matching_normalization,
    normalization_doubt,
    on_grid,
)

MAX_CROPPED = 0.25
"""Largest share of an image that may be cut off without a warning."""

MIN_RANGE = 0.4
"""Smallest range of pixel values without a warning."""


def check_images(context: CheckContext) -> Iterator[Finding]:
    """Check that normalisation can be undone, transforms are deterministic, and encoders see whole images."""
    for index, notes in enumerate(context.notes):
        if notes.images is not None and not (
            context.callback.encoder is None and context.callback.robust_encoder is None
        ):
            where = f"loader {index}: " if len(context.notes) > 1 else ""
            yield from _check_normalization(context, notes, notes.images, where)
            yield from _check_determinism(context, index, where)
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
    elif doubt := normalization_doubt(images, space):
        yield warning(f"{where}{doubt}")
    elif high - low < MIN_RANGE:
        yield warning(
            f"{where}normalisation {how}. Images then range only from {low:.2f} to {high:.2f}: is it the right one?",
            "Pass normalization=(mean, std) of your transform.",
        )
    else:
        levels = ", in the 256 steps of 8-bit images" if on_grid(unit) else ""
        yield ok(
            f"{where}normalisation {how}; images then range from {low:.2f} to {high:.2f}{levels}", low=low, high=high
        )


def _suggestion(images: Tensor, space: ImageSpace, own: ImageSpace | None) -> str:
    """Return the remedy if another known normalisation gives 8-bit images and this one does not; else empty."""
    if gives_8_bit_images(space, images):
        return ""
    if own is not None and gives_8_bit_images(own, images):
        return "Remove normalization=...: the one in the transforms of the dataset fits."
    usual = matching_normalization(images)
    if usual is None:
        return ""
    mean, std = NORMALIZATIONS[usual]
    return f"It looks like {usual}: pass normalization=({list(mean)}, {[round(s, 5) for s in std]})"


def _numbers(values: Sequence[float]) -> str:
    shown = values[:1] if len(set(values)) == 1 else values
    return "/".join(f"{value:.3g}" for value in shown)


def _check_determinism(context: CheckContext, index: int, where: str) -> Iterator[Finding]:
    dataset = context.notes[index].dataset
    indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    if context.dry_run_trainer is None or not indexed:
        return
    if context.example_reader(index).varies(range(min(4, len(dataset)))):
        yield warning(
            f"{where}An image read twice differs: validation has random transforms. Each image is embedded again in"
            " every epoch, and pictures differ from what was graded.",
            "Use random transforms in training only.",
        )


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
