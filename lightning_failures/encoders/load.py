"""Load the encoder that a string names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lightning_failures.core.home import provide_home
from lightning_failures.encoders.base import Encoder
from lightning_failures.encoders.clip import OpenCLIPEncoder
from lightning_failures.encoders.efficientnet import efficientnet_lite0
from lightning_failures.encoders.module import ModuleEncoder
from lightning_failures.encoders.robust import RobustEncoder
from lightning_failures.errors import EncoderError, did_you_mean

if TYPE_CHECKING:
    from lightning_failures.bundled.models.robust_cnn import Variant


# name -> variant of the packaged robust network; the other two show what robust training adds
_EMBEDDED_ROBUST: dict[str, Variant] = {
    "embedded:digits": "robust",
    "embedded:digits-plain": "plain",
    "embedded:digits-untrained": "untrained",
}


def load_encoder(spec: str | Path | Encoder, *, device: str | torch.device = "cpu", robust: bool = False) -> Encoder:
    """Return the encoder that a string names; an encoder object is returned unchanged.

    Args:
        spec: For directions and captions: ``"embedded:digits"``, ``"efficientnet-lite0"`` (no captions), or what
            :class:`OpenCLIPEncoder` takes. For trees (``robust=True``): ``"embedded:digits"`` and its variants
            ``"embedded:digits-plain"`` and ``"embedded:digits-untrained"``, ``"efficientnet-lite0"`` (not robust), or
            the path of a checkpoint for :class:`RobustEncoder`.
        device: Device of a loaded model.
        robust: Whether the encoder provides the features of failure trees, rather than the space of directions.

    Raises:
        EncoderError: The name is unknown or the encoder cannot be loaded; the message lists close matches and encoders
            that work without a network.
    """
    if not isinstance(spec, str | Path):
        return _checked(spec)
    provide_home()
    name = str(spec)
    if name == "efficientnet-lite0":
        return efficientnet_lite0(device=device)
    if robust:
        return _robust(name, device)
    if name == "embedded:digits":
        from lightning_failures.bundled.models import CLIP_FOLDER

        encoder = OpenCLIPEncoder(f"local-dir:{CLIP_FOLDER}", device=device)
        encoder.name = name
        return encoder
    if name in _EMBEDDED_ROBUST:
        return _robust(name, device)
    if name.startswith("embedded:"):
        raise EncoderError(f"encoder={name!r} is not packaged.{did_you_mean(name, _EMBEDDED_ROBUST)}")
    close = did_you_mean(name, ["embedded:digits", "efficientnet-lite0"])
    if close and not Path(name).exists():
        raise EncoderError(f"encoder={name!r} is unknown.{close}")
    return OpenCLIPEncoder(name, device=device)


def _robust(name: str, device: str | torch.device) -> Encoder:
    if name in _EMBEDDED_ROBUST:
        from lightning_failures.bundled.models import load_robust_cnn

        return ModuleEncoder(load_robust_cnn(_EMBEDDED_ROBUST[name]), "features", name=name, device=device)
    if not Path(name).expanduser().is_file():
        known = [*_EMBEDDED_ROBUST, "efficientnet-lite0"]
        raise EncoderError(
            f"robust_encoder={name!r} is neither a file nor one of {', '.join(known)}.{did_you_mean(name, known)} "
            "A robust ResNet (robustness library, torchvision layout, or safetensors) is loaded from its path."
        )
    return RobustEncoder(name, device=device)


def _checked(spec: object) -> Encoder:
    if isinstance(spec, Encoder):
        return spec
    if isinstance(spec, nn.Module):
        raise EncoderError(f"A {type(spec).__name__} is not an encoder. Wrap it: ModuleEncoder(module, layer).")
    raise EncoderError(
        f"An encoder must be a string, a path, or an object with encode_images; got {type(spec).__name__}."
    )
