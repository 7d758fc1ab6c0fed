"""Networks and pictures on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.rng import isolated_rng
from lightning_failures.encoders.frozen import first_line, load_tensors, state_dict_of
from lightning_failures.errors import EncoderError


def load_network(path: Path, architecture: str, **options: Any) -> nn.Module:
    """Build a network of torchvision with the weights of a file, in evaluation mode.

    Args:
        path: The file: a state dict, as torchvision saves it.
        architecture: Name of the network.
        **options: Of its function in torchvision, such as ``num_classes``.

    Raises:
        EncoderError: The file cannot be read as tensors, or they are those of another network.
    """
    path = path.expanduser()
    if not path.is_file():
        raise EncoderError(f"{path} is not a file. Give the weights of torchvision's {architecture}.")
    tensors = state_dict_of(load_tensors(path), path)
    with isolated_rng():
        network: nn.Module = get_model(architecture, weights=None, **options)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise EncoderError(
            f"{path} does not hold the weights of torchvision's {architecture}: {first_line(error)}"
        ) from error
    return network.eval()


def write_picture(image: Tensor, path: Path) -> None:
    """Write an image (3, H, W) uint8 as PNG."""
    content = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
