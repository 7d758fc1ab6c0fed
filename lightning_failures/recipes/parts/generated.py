"""Images from captions and from directions (Jain et al., ICLR 2023, sections 4.1 and 5, A.6).

Synthetic images of the hardest captions, or of the reference captions, are added to the training set of the last layer
alone: logistic regression on the network's own features. Decoded images show where a direction points; the accuracy of
the network on them is compared with that on images of the reference caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_failures.captions import CaptionVocabulary
from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.decoding import decoding_targets
from lightning_failures.encoders.base import TextEncoder
from lightning_failures.generators import load_generator
from lightning_failures.generators.base import takes_embeddings
from lightning_failures.interventions.head import fit_head
from lightning_failures.recipes.base import Found
from lightning_failures.recipes.parts.files import write_picture
from lightning_failures.recipes.parts.filtering import target_examples
from lightning_failures.recipes.parts.spaces import own_space
from lightning_failures.recipes.training import Trained
from lightning_failures.report.images import image_strip, stack

SYNTHETIC, SYNTHETIC_QUICK = 100, 10
"""Images of each class."""

DECODED, DECODED_QUICK = 20, 2
"""Decoded images of each class and end."""

BATCH, ON_SHEET = 16, 8
PENALTIES = (0.1, 0.01, 0.001)
ENDS = ("hard", "reference", "easy")


def synthetic(trained: Trained) -> Found:
    """Refit the last layer with images of the hardest captions, with those of references, and without."""
    if trained.materials.generator is None:
        return Found(notes=("Synthetic images were left out: give --generator, a diffusers pipeline on disk.",))
    prompts = _prompts(trained)
    if not prompts["hardest captions"]:
        return Found(notes=("Synthetic images were left out: no class has captions.",))
    generator = load_generator(trained.materials.generator, local_files_only=True)
    count = SYNTHETIC_QUICK if trained.quick else SYNTHETIC
    space, setting = own_space(trained), trained.setting
    features, labels = trained.embed(setting.train, space), trained.answer(trained.model, setting.train).y
    test = trained.embed(setting.test, space).numpy()
    name, target = target_examples(trained)
    figures: dict[str, float] = {}
    try:
        for arm, texts in {"no images": {}, **prompts}.items():
            added, of_class = [features], [labels]
            for k, text in texts.items():
                seeds = _seeds(trained.seed, k, count)
                images = _in_batches(generator.generate, [text] * count, seeds)
                added.append(space.encode_images(_resized(images, setting.size)))
                of_class.append(np.full(count, k))
            head = fit_head(
                torch.cat(added).numpy(), np.concatenate(of_class), classes=len(setting.class_names),
                penalties=PENALTIES, seed=trained.seed,
            )  # fmt: skip
            right = head.logits(test).argmax(1) == trained.test.y
            figures[f"accuracy, head with {arm}"] = float(right.mean())
            if target.any():
                figures[f"accuracy on {name}, head with {arm}"] = float(right[target].mean())
    finally:
        generator.close()
    return Found(figures)


def decoding(trained: Trained) -> Found:
    """Decode each direction to both ends, and return the accuracies of the network on the images."""
    encoder, setting = trained.encoder, trained.setting
    if trained.materials.decoder is None or not isinstance(encoder, TextEncoder):
        return Found(notes=("Decoding was left out: give --decoder, an unCLIP pipeline on disk for this encoder.",))
    packaged = trained.materials.decoder.startswith("embedded:")
    decoder = load_generator(
        trained.materials.decoder,
        encoder=None if packaged else encoder,
        **({} if packaged else {"local_files_only": True}),
    )
    if not takes_embeddings(decoder) or decoder.encoder_fingerprint != encoder.fingerprint:
        return Found(notes=(f"Decoding was left out: {decoder.name} does not decode embeddings of this encoder.",))
    directions = fit_failure_directions(
        trained.validation_embeddings, trained.validation.y, ~trained.validation.failed, whiten=False, permutations=0,
        seed=trained.seed,
    )  # fmt: skip
    count = DECODED_QUICK if trained.quick else DECODED
    references = encoder.encode_texts([_reference(trained, k) for k in directions.classes.tolist()])
    right: dict[str, list[float]] = {end: [] for end in ENDS}
    strips = []
    try:
        for row, k in enumerate(directions.classes.tolist()):
            targets = decoding_targets(references[row], directions.weight[row])
            for end in ENDS:
                wanted = getattr(targets, end).expand(count, -1)
                images = _in_batches(decoder.decode, wanted, _seeds(trained.seed, k, count))
                right[end].append(_accuracy(trained, _resized(images, setting.size), k))
                strips.append(image_strip(list(images[:ON_SHEET]), title=f"{setting.class_names[k]}, {end}"))
    finally:
        decoder.close()
    if not strips:
        return Found(notes=("Decoding was left out: no class has a direction.",))
    path = trained.output / f"decoded-seed-{trained.seed}.png"
    write_picture(stack(strips), path)
    return Found(
        {f"accuracy on decoded {end} images": float(np.mean(values)) for end, values in right.items()},
        files={f"decoded images of seed {trained.seed}": path.name},
    )


def _prompts(trained: Trained) -> dict[str, dict[int, str]]:
    """Return the hardest and the reference caption by class, of the classes that have captions."""
    hardest = {
        k: one.hardest_captions[0] for k, one in enumerate(trained.result.report.classes) if one.hardest_captions
    }
    return {"reference captions": {k: _reference(trained, k) for k in hardest}, "hardest captions": hardest}


def _reference(trained: Trained, k: int) -> str:
    names = trained.setting.class_names
    found = CaptionVocabulary.load(trained.setting.captions).reference(names[k], names)
    return found or f"a photo of {names[k]}"


@torch.no_grad()
def _accuracy(trained: Trained, images: Tensor, label: int) -> float:
    mean, std = (torch.tensor(values)[:, None, None] for values in trained.setting.statistics)
    logits = trained.model.eval()(((images - mean) / std).to(trained.device))
    return float((logits.argmax(1) == label).float().mean())


def _in_batches(make: Any, wanted: Sequence[str] | Tensor, seeds: Sequence[int]) -> Tensor:
    """Return images (B, 3, H, W) uint8, made a few at a time."""
    starts = range(0, len(seeds), BATCH)
    return torch.cat([make(wanted[start : start + BATCH], seeds[start : start + BATCH]) for start in starts])


def _resized(images: Tensor, size: int) -> Tensor:
    """Return images (B, 3, H, W) uint8 as floats (B, 3, size, size) in [0, 1]."""
    unit = images.float() / 255
    return F.interpolate(unit, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _seeds(seed: int, class_index: int, count: int) -> list[int]:
    """Return the seeds of the images of a class, the same for every arm."""
    return [1_000_000 * seed + 1000 * class_index + number for number in range(count)]
