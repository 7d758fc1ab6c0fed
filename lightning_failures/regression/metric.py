"""The error rate of a pinned slice as a torchmetrics metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_failures.core.arrays import as_array
from lightning_failures.data.digests import image_digests
from lightning_failures.data.pin_check import PinCheck
from lightning_failures.errors import DataError
from lightning_failures.regression.check import ClassImages, judge, measure_images
from lightning_failures.regression.pin import Pin


class PinnedSliceErrorRate(Metric):
    """Error rate of a pinned slice, in [0, 1]; NaN if none of its images was seen.

    An image counts once, however often it was seen, also if a distributed sampler shows it to several processes. An
    image is found again by its pixels; with embeddings, other images of the class belong to the slice if the pin says
    so. Only a few numbers of each image of the class are kept.

    Args:
        pin: The pin, or its file.
        class_index: Label of the class of the pin.
        **options: Options of :class:`torchmetrics.Metric`, such as ``sync_on_compute``.

    Raises:
        DataError: The file is no pin, is damaged, or was written by a later version.

    Example::

        self.night_owls = PinnedSliceErrorRate("pins/owl-1.pin", class_index=3)
        ...
        # images in [0, 1], before they are normalised
        self.night_owls.update(logits, labels, images=images, embeddings=encoder.encode_images(images))
        self.log("night owls", self.night_owls)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    images: list[Tensor]  # (n, 4) int64: digest, failed, in the slice by its embedding, label of another class

    def __init__(self, pin: Pin | str | Path, class_index: int, **options: Any) -> None:
        super().__init__(**options)
        self.pin = pin if isinstance(pin, Pin) else Pin.load(pin)
        self.class_index = int(class_index)
        self.add_state("images", [], dist_reduce_fx="cat")
        self._clear()

    def update(
        self,
        predictions: Tensor,
        labels: Tensor,
        *,
        images: Tensor | None = None,
        digests: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            predictions: (B,) predicted classes, or (B, K) scores, of which the largest is the prediction.
            labels: (B,) int.
            images: (B, C, H, W) as the data set gives them, before normalisation: float in [0, 1], or uint8.
            digests: (B,) int64, the digests of the images, instead of the images.
            embeddings: (B, D) by the encoder of the pin, which tell which new images are in the slice; features, for
                a rule. None: only pinned images are.

        Raises:
            DataError: Neither images nor digests are given, or shapes do not agree.
        """
        if digests is None:
            if images is None:
                raise DataError("PinnedSliceErrorRate.update needs images, as the data set gives them, or digests.")
            digests = image_digests(images)
        guesses = predictions.argmax(1) if predictions.ndim == 2 else predictions
        columns = {"predictions": guesses, "labels": labels, "digests": digests, "embeddings": embeddings}
        wrong = [name for name, column in columns.items() if column is not None and len(column) != len(labels)]
        if wrong:
            raise DataError(
                f"PinnedSliceErrorRate.update: {', '.join(wrong)} must have {len(labels)} rows like labels."
            )
        mine = (labels == self.class_index).cpu()
        inside = torch.zeros(len(labels), dtype=torch.bool)
        if embeddings is not None and mine.any():
            inside[mine] = torch.from_numpy(self.pin.contains(embeddings[mine.to(embeddings.device)]))
        rows = torch.stack([digests.cpu(), (guesses != labels).cpu(), inside, ~mine], dim=1).long()
        kept = mine | torch.isin(rows[:, 0], self.pin.digests)
        self.images.append(rows[kept].to(self.device))

    def reset(self) -> None:
        """Remove all images."""
        super().reset()
        self._clear()

    def compute(self) -> Tensor:
        """Return the error rate of the slice, a float32 scalar."""
        found = self._measured()
        rate = found.failures / found.examples if found.examples else torch.nan
        return torch.tensor(rate, dtype=torch.float32, device=self.device)

    def check(self) -> PinCheck:
        """Test whether the slice has reopened, by itself (:func:`~lightning_failures.regression.check_pins`).

        Collective, where there are several processes.
        """
        with self.sync_context():
            (checked,) = judge([self._measured()])
        return checked

    def _measured(self) -> PinCheck:
        """Return the numbers of the slice over all batches."""
        rows = as_array(dim_zero_cat(self.images)).reshape(-1, 4)
        mine = rows[rows[:, 3] == 0]
        images = ClassImages.distinct(mine[:, 0].copy(), mine[:, 1] == 1, mine[:, 2] == 1)
        return measure_images(self.pin, images, elsewhere=rows[rows[:, 3] == 1, 0])

    def _clear(self) -> None:
        # a process without any batch still sends the tensor that the other processes expect
        self.images = [torch.empty(0, 4, dtype=torch.int64, device=self.device)]
