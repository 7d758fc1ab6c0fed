"""Pictures of features of a robust network beside those of a standard one (Singla et al., CVPR 2021, App. I).

For each feature: the images of the class that activate it most, its heat maps, and the images after a feature attack.
An attack on a standard network changes images in ways that mean nothing to people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_failures.core.types import IntArray
from lightning_failures.encoders.feature_attack import feature_attack
from lightning_failures.encoders.module import ModuleEncoder
from lightning_failures.report.images import heat_map, image_strip, most_activating, stack

IMAGES = 5


@dataclass(frozen=True, eq=False)
class ShownFeature:
    """A feature to show.

    Attributes:
        title: What the pictures are titled with.
        encoder: The network of the feature.
        feature: Its index.
        values: (n,) its values on the images of a class.
        rows: (n,) the rows of these images.
    """

    title: str
    encoder: ModuleEncoder
    feature: int
    values: Tensor
    rows: IntArray


def feature_sheet(shown: Sequence[ShownFeature], read: Callable[[IntArray], Tensor], steps: int) -> Tensor:
    """Return one picture, (3, H, W) uint8, with three rows for each feature.

    Args:
        shown: The features, at least one.
        read: Returns images (n, C, H, W) in [0, 1] by their rows.
        steps: Number of steps of an attack.
    """
    strips = []
    for one in shown:
        top = most_activating(one.values, IMAGES)
        images = read(one.rows[top.numpy()])
        seen = one.encoder.view(images).to(one.encoder.device)
        maps = one.encoder.encode_maps(images)[:, one.feature]
        with one.encoder.differentiable() as features:
            attacked = feature_attack(features, seen, one.feature, iterations=steps)
        assert attacked is not None  # there is no deadline
        with torch.inference_mode(), one.encoder.differentiable() as features:
            after = features(attacked)[:, one.feature].detach().cpu()
        values = [f"{value:.2f}" for value in one.values[top].tolist()]
        strips += [
            image_strip(list(seen.cpu()), values, title=f"{one.title}: most active images"),
            image_strip([heat_map(m, image) for m, image in zip(maps, seen.cpu(), strict=True)], title="heat maps"),
            image_strip(list(attacked.cpu()), [f"{value:.2f}" for value in after.tolist()],
                        title=f"after an attack of {steps} steps"),
        ]  # fmt: skip
    return stack(strips)
