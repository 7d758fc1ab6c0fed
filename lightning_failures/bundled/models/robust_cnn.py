"""The architecture of the packaged CNN, and a function that loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_failures.errors import ConfigurationError

Variant = Literal["robust", "plain", "untrained"]


class RobustCNN(nn.Module):
    """Convolutions, global average pooling, and one linear head each for digit and tint.

    It takes images in [0, 1]. Feature j is the mean of map j of ``features(images)``, so the map shows where the
    feature is present.

    Args:
        widths: Channels of the convolutions. The first two are followed by 2 x 2 pooling.

    >>> RobustCNN().features(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 128, 8, 8])
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 128)) -> None:
        super().__init__()
        self.dim = widths[-1]
        layers: list[nn.Module] = [nn.BatchNorm2d(3, affine=False)]
        for depth, (inputs, outputs) in enumerate(zip((3, *widths), widths, strict=False)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            if depth < 2:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.digit = nn.Linear(self.dim, 10)
        self.tint = nn.Linear(self.dim, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of digit and tint, (B, 10) each, of images (B, 3, H, W) in [0, 1]."""
        pooled = self.features(images).mean(dim=(2, 3))
        return self.digit(pooled), self.tint(pooled)


def load(folder: Path, variant: Variant = "robust") -> RobustCNN:
    """Build the CNN of ``folder/config.json`` and load ``<variant>.safetensors``; ``"untrained"`` needs no weights.

    Raises:
        ConfigurationError: The variant does not exist.
    """
    if variant not in get_args(Variant):
        raise ConfigurationError(f"load_robust_cnn: variant must be one of {get_args(Variant)}; got {variant!r}.")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = RobustCNN(tuple(config["widths"]))
    if variant != "untrained":
        model.load_state_dict(load_file(folder / f"{variant}.safetensors"))
    return model.eval()
