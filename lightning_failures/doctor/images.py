"""From the images that the model sees to those that an encoder sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_failures.core.rng import isolated_rng, seed_all
from lightning_failures.doctor.dry_run import CheckContext, LoaderNotes
from lightning_failures.doctor.findings import Finding, ok, problem, skipped, warning
from lightning_failures.encoders.preprocessing import Preprocessing
from lightning_failures.errors import DataError
from lightning_failures.trainer.image_space import ImageSpace, find_normalization

CROPPED = 0.25
NARROW = 0.4

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
"""Usual ones by name: (mean, std)."""


def check_images(case: CheckContext) -> Iterator[Finding]:
    """From the model's images back to [0, 1], and on to the encoders."""
    for index, notes in enumerate(case.notes):
        if notes.images is not None and not (case.modes.encoder is None and case.modes.robust_encoder is None):
            where = f"loader {index}: " if len(case.notes) > 1 else ""
            yield from _space(case, notes, notes.images, where)
            yield from _random(case, notes, where)
    seen = case.notes[0].images if case.notes else None
    if seen is None:
        yield skipped("no images were read")
        return
    for cached in case.cached_encoders.values():
        preprocessing = getattr(cached.encoder, "preprocessing", None)
        if isinstance(preprocessing, Preprocessing):
            words, lost = in_words(preprocessing, *seen.shape[-2:])
            message = f"{cached.encoder.name}: {words}"
            remedy = "What happens at the edges is not seen: resize to a square in the transform of validation."
            yield warning(message, remedy) if lost > CROPPED else ok(message)


def _space(case: CheckContext, notes: LoaderNotes, images: Tensor, where: str) -> Iterator[Finding]:
    space, own = case.reader.space(notes.dataset), find_normalization(notes.dataset)
    source = "the dataset's transforms" if own else ""
    if case.modes.normalization is not None:
        source = "normalization=..."
    told = f"undone: mean {_numbers(space.mean)}, std {_numbers(space.std)} from {source}" if source else "none found"
    better = _better(images, space, own)
    try:
        unit = space.to_unit(images)
    except DataError as error:
        yield problem(where + str(error), better)
        return
    low, high = (float(bound) for bound in unit.aminmax())
    if better:
        yield warning(
            f"{where}normalisation {told}. Then they are no 8-bit images; with another they would be.", better
        )
    elif high - low < NARROW:
        yield warning(
            f"{where}normalisation {told}. Then images run only from {low:.2f} to {high:.2f}: is it the right one?",
            "normalization=(mean, std) of your transform.",
        )
    else:
        levels = ", in the 256 steps of 8-bit images" if _on_grid(unit) else ""
        yield ok(
            f"{where}normalisation {told}; images then run from {low:.2f} to {high:.2f}{levels}", low=low, high=high
        )


def _better(images: Tensor, space: ImageSpace, own: ImageSpace | None) -> str:
    """Which normalisation gives 8-bit images, where the one that is undone does not; empty if none is known."""
    if _gives_steps(space, images):
        return ""
    if own is not None and _gives_steps(own, images):
        return "Leave normalization out: the one of the dataset's transforms fits."
    usual = matching_normalization(images)
    if usual is None:
        return ""
    mean, std = NORMALIZATIONS[usual]
    return f"It looks like {usual}: normalization=({list(mean)}, {[round(s, 5) for s in std]})"


def _gives_steps(space: ImageSpace, images: Tensor) -> bool:
    try:
        return _on_grid(space.to_unit(images))
    except DataError:
        return False


def matching_normalization(images: Tensor) -> str | None:
    """Name the usual normalisation of which 8-bit images come out when it is undone; None if there is no such.

    >>> pixels = torch.arange(256.0).reshape(1, 1, 16, 16) / 255
    >>> matching_normalization((pixels - 0.1307) / 0.3081), matching_normalization(pixels * 0.777)
    ("MNIST's", None)
    """
    fitting = (name for name, (mean, std) in NORMALIZATIONS.items() if _gives_steps(ImageSpace(mean, std), images))
    return next(fitting, None)


def _on_grid(unit: Tensor) -> bool:
    """Whether nearly all values are multiples of 1/255, as those of images that were stored in 8 bits."""
    steps = unit.double() * 255
    return bool(((steps - steps.round()).abs() < 0.02).double().mean() > 0.99) and len(torch.unique(steps.round())) > 2


def _numbers(values: Sequence[float]) -> str:
    shown = values[:1] if len(set(values)) == 1 else values
    return "/".join(f"{value:.3g}" for value in shown)


def _random(case: CheckContext, notes: LoaderNotes, where: str) -> Iterator[Finding]:
    if isinstance(notes.dataset, IterableDataset) or not hasattr(notes.dataset, "__getitem__"):
        return
    first, second = (_read_again(case, notes, seed) for seed in (0, 1))
    if first is not None and second is not None and (first.shape != second.shape or not torch.equal(first, second)):
        yield warning(
            f"{where}An image read twice differs: validation has random transforms. Each image is embedded anew in"
            " every epoch, and pictures are not what was graded.",
            "Leave random transforms to training.",
        )


def _read_again(case: CheckContext, notes: LoaderNotes, seed: int) -> Tensor | None:
    with isolated_rng():
        seed_all(seed)
        examples = [notes.dataset[row] for row in range(min(4, len(notes.dataset)))]
        return case.reader.read(None, notes.loader.collate_fn(examples)).images


def in_words(preprocessing: Preprocessing, height: int, width: int) -> tuple[str, float]:
    """What an encoder does to images of this size, and the share of them that it does not see.

    >>> in_words(Preprocessing(size=(224, 224)), 240, 320)
    ('240 x 320 images are resized to 224 x 299, centre cut to 224 x 224 (25% cut off)', 0.25)
    """
    size = f"{height} x {width} images"
    if preprocessing.size is None:
        return f"{size} are taken as they are", 0.0
    target_height, target_width = preprocessing.size
    target = f"{target_height} x {target_width}"
    if preprocessing.resize_mode == "squash":
        return f"{size} are squashed to {target}", 0.0
    if preprocessing.resize_mode == "longest":
        return f"{size} are resized and padded to {target}", 0.0
    scale = max(target_height / height, target_width / width) / preprocessing.crop
    resized = max(round(height * scale), target_height), max(round(width * scale), target_width)
    lost = round(1 - target_height * target_width / (resized[0] * resized[1]), 2)
    if lost == 0:
        return f"{size} are {'taken as they are' if scale == 1 else f'resized to {target}'}, nothing is cut off", 0.0
    return f"{size} are resized to {resized[0]} x {resized[1]}, centre cut to {target} ({lost:.0%} cut off)", lost
