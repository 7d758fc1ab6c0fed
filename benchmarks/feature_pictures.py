"""Quality and cost of feature pictures of the packaged digits; two or three minutes on one core.

* Activation of a feature after attacks with fewer and longer steps, relative to the paper's 500 steps.
* How often the caption of a feature names the tint of its six most activating images, if at least five of them share a
  tint that most of their group lacks.
* Milliseconds per step with six images per feature, for the packaged encoder and a ResNet-50 at 224 x 224 pixels.

python benchmarks/feature_pictures.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from digits import progress
from torch import Tensor
from torchvision.models import resnet50

from lightning_failures.bundled.digits.data import ColouredDigits
from lightning_failures.captions.candidates import caption_source
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.captions.scoring import most_distinctive_caption
from lightning_failures.directions import fit_failure_directions
from lightning_failures.encoders import ModuleEncoder, OpenCLIPEncoder, load_encoder
from lightning_failures.encoders.feature_attack import feature_attack
from lightning_failures.trainer.pictures.feature_views import LEVELS
from lightning_failures.trainer.pictures.features import FEATURE_IMAGES


def main() -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    digits = ColouredDigits("validation", size=2000, seed=0, shortcut=0.95)
    images = digits.images.float() / 255
    robust, clip = load_encoder("embedded:digits", robust=True), load_encoder("embedded:digits")
    assert isinstance(robust, ModuleEncoder)
    assert isinstance(clip, OpenCLIPEncoder)
    features = robust.encode_images(images)
    named = np.array(list(names_of_tints(digits, features, clip.encode_images(images), clip)))
    print(f"captions name the shared tint: {named.mean():.0%} of {len(named)} features and groups")
    ratios = []
    for feature in progress(range(0, robust.dim, 16), "feature"):
        top = images[features[:, feature].argsort(descending=True)[:FEATURE_IMAGES]]
        strengths = []
        for level in LEVELS:
            with robust.differentiable() as differentiable:
                moved = feature_attack(differentiable, top, feature, iterations=level)
            assert moved is not None
            strengths.append(float(robust.encode_images(moved)[:, feature].mean()))
        ratios.append(np.array(strengths) / strengths[0])
    for level, ratio in zip(LEVELS, np.transpose(ratios), strict=True):
        print(
            f"{level} steps: {ratio.mean():.2f} of the strength of {LEVELS[0]} ({ratio.min():.2f} to {ratio.max():.2f})"
        )
    with torch.random.fork_rng():
        large = ModuleEncoder(resnet50(), "layer4", image_size=224)
    for name, encoder, side, steps in (("packaged encoder", robust, 32, 100), ("ResNet-50", large, 224, 3)):
        print(f"{name}: {1000 * seconds_a_step(encoder, side, steps):.0f} ms of CPU a step")


def names_of_tints(
    digits: ColouredDigits, features: Tensor, embeddings: Tensor, clip: OpenCLIPEncoder
) -> Iterator[bool]:
    """Return whether the caption names the tint that the most activating images share, per feature and class."""
    captions: Callable = caption_source(clip, CaptionVocabulary.load("digits"), digits.classes)
    labels, tints = digits.labels.numpy(), np.array(digits.tint)
    correct = np.random.default_rng(0).random(len(labels)) < 0.5  # only mean and deviation of phi are used
    directions = fit_failure_directions(embeddings, labels, correct, permutations=0)
    for k in range(len(digits.classes)):
        group = np.flatnonzero(labels == k)
        candidates = captions(k)
        for feature in range(features.shape[1]):
            values = features[group, feature].numpy()
            top = np.argsort(-values, kind="stable")[:FEATURE_IMAGES]
            found, counts = np.unique(tints[group[top]], return_counts=True)
            tint = found[counts.argmax()]
            if values[top[0]] <= 0 or counts.max() < FEATURE_IMAGES - 1 or (tints[group] == tint).mean() >= 0.6:
                continue
            chosen = np.isin(np.arange(len(group)), top)
            best = most_distinctive_caption(
                directions, embeddings[group], chosen, candidates.embeddings, candidates.reference
            )
            assert best is not None
            yield tint in candidates.texts[best.index].split()


def seconds_a_step(encoder: ModuleEncoder, side: int, steps: int) -> float:
    """Return the CPU seconds per step on random images."""
    images = torch.rand(FEATURE_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0))
    with encoder.differentiable() as features:
        feature_attack(features, images, 0, iterations=1)
        start = time.process_time()
        feature_attack(features, images, 0, iterations=steps)
    return (time.process_time() - start) / steps


if __name__ == "__main__":
    main()
