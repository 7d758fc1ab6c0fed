"""Small copies of some images of a stream, kept while they pass, because they cannot be read again by their ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lightning_failures.core.arrays import finite_rows
from lightning_failures.core.budget import sampling_rank
from lightning_failures.errors import DataError
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.ranks import Communicator

KEPT_SAMPLE = 256
"""Number of images in the sample by the hash of their ids."""

KEPT_EXTREMES = 128
"""Number of the hardest images, and of those between right and wrong."""

KEPT_SIDE = 64
"""Longer side of a kept image, in pixels; smaller images are kept as they are."""


@dataclass(frozen=True)
class _Pool:
    """The ids with the lowest scores so far: (n,) int64 and (n,) float64."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float64]

    @classmethod
    def empty(cls) -> _Pool:
        return cls(np.empty(0, dtype=np.int64), np.empty(0))

    def with_batch(self, ids: NDArray[np.int64], scores: NDArray[np.float64], limit: int) -> _Pool:
        """Return the pool after a batch of ids that it does not hold; those without a score stay out."""
        known = ~np.isnan(scores)
        ids, scores = np.concatenate([self.ids, ids[known]]), np.concatenate([self.scores, scores[known]])
        lowest = np.argsort(scores, kind="stable")[:limit]
        return _Pool(ids[lowest], scores[lowest])


class KeptImages:
    """Keeps small images of a hash sample, of the hardest examples, and of those that were close calls.

    At most ``KEPT_SAMPLE + 2 * KEPT_EXTREMES`` images of ``KEPT_SIDE`` pixels are in memory. Only those that come into
    one of the three sets are copied.

    Args:
        seed: Seed of the hash sample.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._sample = self._hardest = self._close = _Pool.empty()
        self._images: dict[int, Tensor] = {}  # (C, h, w) uint8, by id

    def __len__(self) -> int:
        return len(self._images)

    def add(self, images: Tensor, space: ImageSpace, ids: Tensor, confidence: Tensor) -> None:
        """Keep those of a batch that belong to one of the sets, and drop those that no longer do.

        Args:
            images: (B, C, H, W), as the model saw them.
            space: How to bring the images to [0, 1]; an image that cannot be is not kept.
            ids: (B,) int64.
            confidence: (B,) float in [0, 1], the predicted probability of the true class; NaN if it is not known.
        """
        numbers, first = np.unique(ids.numpy(), return_index=True)
        new = ~np.isin(numbers, list(self._images))
        numbers, first = numbers[new], first[new]
        ranks, certainty = sampling_rank(numbers, self._seed), confidence.double().numpy()[first]
        ties = 1e-9 * ranks
        self._sample = self._sample.with_batch(numbers, ranks, KEPT_SAMPLE)
        self._hardest = self._hardest.with_batch(numbers, certainty + ties, KEPT_EXTREMES)
        self._close = self._close.with_batch(numbers, np.abs(certainty - 0.5) + ties, KEPT_EXTREMES)

        wanted = np.concatenate([self._sample.ids, self._hardest.ids, self._close.ids])
        for gone in self._images.keys() - set(wanted.tolist()):
            del self._images[gone]
        chosen = np.isin(numbers, wanted)
        rows = torch.from_numpy(first[chosen])
        if len(rows):
            small = _small(images.detach()[rows.to(images.device)], space)
            self._images |= {i: image for i, image in zip(numbers[chosen].tolist(), small, strict=True) if len(image)}

    def gathered(self, ranks: Communicator) -> dict[int, Tensor]:
        """Return the images (C, h, w) uint8 of all ranks by id. Collective."""
        together: dict[int, Tensor] = {}
        for images in ranks.gather_objects(self._images):
            together |= images
        return together


def _small(images: Tensor, space: ImageSpace) -> list[Tensor]:
    """Return images (n, C, H, W) as (C, h, w) uint8 on the CPU; those that do not fit the normalisation are empty."""
    try:
        unit = space.to_unit(images)
    except DataError:
        return [torch.empty(0)] * len(images)
    fits = finite_rows(unit).tolist()
    scale = KEPT_SIDE / max(unit.shape[2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in unit.shape[2:]]
        unit = F.interpolate(unit, size, mode="bilinear", antialias=True, align_corners=False)
    pixels = (unit.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    # clone: a row of a batch would keep the whole batch in memory
    return [image.clone() if fit else torch.empty(0) for image, fit in zip(pixels, fits, strict=True)]
