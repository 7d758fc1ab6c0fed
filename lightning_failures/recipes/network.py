"""The papers' networks and their schedule, as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet, get_model

from lightning_failures.recipes.base import Schedule

SMALL = 64
"""Edge below which images are small: the first layer then keeps their size, as is usual for CIFAR."""


def network(classes: int, size: int, architecture: str = "resnet18") -> nn.Module:
    """Return a network of torchvision with random weights.

    A ResNet for small images has a 3 x 3 first layer, and no pooling after it.
    """
    model: nn.Module = get_model(architecture, weights=None, num_classes=classes)
    if size < SMALL and isinstance(model, ResNet):
        model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    return model


class Classifier(L.LightningModule):
    """A network trained by SGD at a triangular rate.

    Args:
        classes: Number of classes.
        size: Edge of the images in pixels.
        schedule: How it is trained.
        multilabel: Whether each of the classes is present or absent: labels (B, K) of 0 and 1.
        architecture: Name of a network of torchvision.
        loss: ``(logits, labels) -> scalar``; None: the cross-entropy.
    """

    def __init__(
        self,
        classes: int,
        size: int,
        schedule: Schedule,
        *,
        multilabel: bool = False,
        architecture: str = "resnet18",
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.net = network(classes, size, architecture)
        self.schedule, self.multilabel = schedule, multilabel
        self.loss = loss or (F.binary_cross_entropy_with_logits if multilabel else F.cross_entropy)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, 3, H, W)."""
        logits: Tensor = self.net(x)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch: the cross-entropy unless given, in a multilabel task its mean over classes."""
        x, y = batch
        loss: Tensor = self.loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the accuracy of a batch."""
        x, y = batch
        logits = self(x)
        right = (logits > 0) == (y == 1) if self.multilabel else logits.argmax(1) == y
        self.log("val_acc", right.float().mean())

    def configure_optimizers(self) -> Any:
        """Return SGD and the triangular schedule, which advances every step."""
        plan = self.schedule
        optimizer = torch.optim.SGD(
            self.parameters(), lr=plan.learning_rate, momentum=plan.momentum, weight_decay=plan.weight_decay
        )
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        peak = steps * min(plan.peak_epoch / plan.epochs, 1.0)

        def factor(step: int) -> float:
            return float(np.interp(step + 1, [0, peak, steps + 1], [0, 1, 0]))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
