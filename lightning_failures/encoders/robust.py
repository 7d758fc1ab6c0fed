"""Adversarially robust ResNets, whose features a failure tree splits on (Barlow, Singla et al. 2021, section 3)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_failures.encoders.frozen import first_line, isolated_build, load_tensors, state_dict_of
from lightning_failures.encoders.module import ModuleEncoder
from lightning_failures.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from lightning_failures.errors import EncoderError, did_you_mean


class RobustEncoder(ModuleEncoder):
    """A robust ResNet from a file of tensors; the embedding is the spatial mean of the last feature maps (``layer4``).

    Three layouts are supported: that of the ``robustness`` library (a dictionary with ``model``, keys such as
    ``module.model.layer1.0.conv1.weight`` and ``module.normalizer.new_mean``), torchvision's, and its CIFAR variant
    (3 x 3 stem, ``shortcut`` and ``linear``), each with any prefix, as ``.safetensors`` or written by ``torch.save``.
    No code from the file is run.

    Args:
        path: The file.
        arch: Name of a torchvision ResNet (``"resnet50"``, ``"wide_resnet50_2"``). None: inferred from the shapes.
        device: Device of the model, independent of the Trainer's.
        mean: Normalisation; None: the file's own, or ImageNet's for a model with ImageNet's stem.
        std: As ``mean``.
        image_size: Size to which images are resized, shortest edge first; None: 224 for ImageNet's stem and 32 for
            CIFAR's. The border that evaluation on ImageNet crops (0.875) is kept, so that heat maps cover the image.
        name: Name for display; default: the name of the file.
        batch_size: Images in one forward pass.

    Attributes:
        arch: The architecture that was built, e.g. ``"ResNet(Bottleneck, [3, 4, 6, 3])"``.

    Raises:
        EncoderError: The file is missing, damaged, contains code, or is not a ResNet; the tensors do not fit ``arch``;
            the normalisation is unknown; or the loaded model fails its self-test.
    """

    def __init__(
        self,
        path: str | Path,
        arch: str | None = None,
        *,
        device: str | torch.device = "cpu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | None = None,
        name: str | None = None,
        batch_size: int = 64,
    ) -> None:
        path = Path(path).expanduser()
        found = load_resnet(path, arch, mean=mean, std=std)
        self.arch = found.arch
        super().__init__(
            found.net,
            "layer4",
            mean=found.mean,
            std=found.std,
            image_size=image_size or found.image_size,
            interpolation="bilinear",
            name=name or path.name,
            device=device,
            copy=True,
            batch_size=batch_size,
        )
        _self_test(self, path)


@dataclass(frozen=True, eq=False)
class LoadedResNet:
    """A ResNet from a file, see :class:`RobustEncoder` for the layouts.

    Attributes:
        net: The network in torchvision's layout, in evaluation mode; its input is normalised.
        mean: Mean of the normalisation.
        std: Standard deviation of the normalisation.
        image_size: Usual edge of its images: 224, or 32 for CIFAR's stem.
        arch: The architecture as text.
    """

    net: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    arch: str


def load_resnet(
    path: Path, arch: str | None = None, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> LoadedResNet:
    """Read a ResNet with its normalisation from a file of tensors.

    Args:
        path: The file.
        arch: Name of a torchvision ResNet; None: inferred from the shapes.
        mean: Normalisation; None: the file's own, or ImageNet's for a model with ImageNet's stem.
        std: As ``mean``.

    Raises:
        EncoderError: See :class:`RobustEncoder`.
    """
    if not path.is_file():
        raise EncoderError(
            f"robust_encoder={str(path)!r} is not a file. Give the path of a checkpoint, or 'embedded:digits'."
        )
    tensors, normalisation = _torchvision_layout(state_dict_of(load_tensors(path), path), path)
    shape = _infer_shape(tensors, path)
    net = _build(shape, tensors, arch, path)
    if mean is None or std is None:
        if normalisation is None and shape.small_stem:
            raise EncoderError(
                f"{path} contains no normalisation, and small images have no usual one. Set mean= and std=."
            )
        file_mean, file_std = normalisation or (IMAGENET_MEAN, IMAGENET_STD)
        mean, std = mean or file_mean, std or file_std
    return LoadedResNet(net, tuple(mean), tuple(std), 32 if shape.small_stem else 224, arch or str(shape))


@dataclass(frozen=True)
class _Shape:
    """The architecture of a ResNet, as inferred from the shapes of its tensors."""

    bottleneck: bool
    layers: tuple[int, ...]
    groups: int
    width_per_group: int
    channels: int
    small_stem: bool
    classes: int | None

    def __str__(self) -> str:
        block = "Bottleneck" if self.bottleneck else "BasicBlock"
        has_usual_width = (self.groups, self.width_per_group) == (1, 64)
        width = "" if has_usual_width else f", groups={self.groups}, width={self.width_per_group}"
        stem = ", 3x3 stem" if self.small_stem else ""
        return f"ResNet({block}, {list(self.layers)}{width}{stem})"


_Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def _torchvision_layout(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], _Normalisation | None]:
    """Return the tensors of the network under torchvision's names, and the normalisation if the file has one.

    The ``robustness`` library stores the network twice, the second time with a longer prefix (``attacker``).
    """
    marker = "layer1.0.conv1.weight"
    prefixes = [key.removesuffix(marker) for key in state if key.endswith(marker)]
    if not prefixes:
        raise EncoderError(
            f"{path} is not a ResNet: no key ends in {marker!r}; its first keys are {', '.join(list(state)[:4])}. "
            "For other networks use ModuleEncoder(module, layer)."
        )
    prefix = min(prefixes, key=len)
    network: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(prefix):
            renamed = key.removeprefix(prefix).replace(".shortcut.", ".downsample.")
            renamed = re.sub(r"^linear\.", "fc.", renamed)
            if re.match(r"(conv1|bn1|layer[1-4]|fc)\.", renamed):
                network[renamed] = tensor
    mean = _statistic(state, "mean")
    std = _statistic(state, "std")
    return network, None if mean is None or std is None else (mean, std)


def _statistic(state: Mapping[str, Tensor], kind: str) -> tuple[float, ...] | None:
    """Return the mean or std of the normalisation that the file contains, or None."""
    pattern = rf"(^|\.)(new_{kind}|normali[sz]er?\.{kind})$"
    found = next((tensor for key, tensor in state.items() if re.search(pattern, key)), None)
    return None if found is None else tuple(found.flatten().tolist())


def _infer_shape(tensors: Mapping[str, Tensor], path: Path) -> _Shape:
    """Infer the architecture from names and shapes of the tensors.

    Raises:
        EncoderError: A part of a ResNet is missing.
    """
    matches = [re.match(r"layer(\d)\.(\d+)\.", key) for key in tensors]
    blocks = {(int(match[1]), int(match[2])) for match in matches if match}
    stages = [stage for stage, _ in blocks]
    layers = tuple(stages.count(stage) for stage in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in tensors
    middle = tensors.get("layer1.0.conv2.weight")
    stem = tensors.get("conv1.weight")
    if stem is None or middle is None or stem.ndim != 4 or middle.ndim != 4 or 0 in layers:
        raise EncoderError(
            f"{path} is not a complete ResNet: it needs a stem and layer1 ... layer4; it has {list(layers)} blocks."
        )
    groups = middle.shape[0] // middle.shape[1] if bottleneck else 1
    head = tensors.get("fc.weight")
    return _Shape(
        bottleneck=bottleneck,
        layers=layers,
        groups=groups,
        width_per_group=middle.shape[0] // groups if bottleneck else 64,
        channels=stem.shape[1],
        small_stem=stem.shape[-1] == 3,
        classes=None if head is None else head.shape[0],
    )


def _build(shape: _Shape, tensors: Mapping[str, Tensor], arch: str | None, path: Path) -> nn.Module:
    """Build the network and load its tensors.

    Raises:
        EncoderError: ``arch`` is unknown, or the tensors do not fit.
    """
    from torchvision.models import get_model, list_models
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

    classes = shape.classes or 1
    with isolated_build():
        if arch is None:
            net = ResNet(
                Bottleneck if shape.bottleneck else BasicBlock,
                list(shape.layers),
                num_classes=classes,
                groups=shape.groups,
                width_per_group=shape.width_per_group,
            )
        else:
            known = [m for m in list_models() if re.match(r"(wide_)?resne[x]?t\d", m)]
            if arch not in known:
                raise EncoderError(
                    f"arch={arch!r} is not a torchvision ResNet.{did_you_mean(arch, known)} Omit it to infer it."
                )
            net = get_model(arch, weights=None, num_classes=classes)
        if shape.small_stem:
            net.maxpool = nn.Identity()
        if shape.small_stem or shape.channels != 3:
            size, stride = (3, 1) if shape.small_stem else (7, 2)
            net.conv1 = nn.Conv2d(shape.channels, 64, size, stride=stride, padding=size // 2, bias=False)
        if shape.classes is None:
            net.fc = nn.Identity()
        try:
            net.load_state_dict(tensors, strict=True)
        except RuntimeError as error:
            details = " ".join(line.strip() for line in str(error).splitlines()[1:3])[:300]
            raise EncoderError(
                f"The tensors of {path} do not fit {arch or shape}: {details or first_line(error)}"
            ) from error
    built: nn.Module = net.eval()
    return built


def _self_test(encoder: ModuleEncoder, path: Path) -> None:
    """Check that features of test images are finite and differ between images; damaged weights may load all the same.

    Raises:
        EncoderError: They do not.
    """
    size = encoder.preprocessing.size
    assert size is not None
    noise = torch.rand(2, len(encoder.preprocessing.mean), *size, generator=torch.Generator().manual_seed(0))
    features = encoder.encode_images(noise)
    if not torch.isfinite(features).all():
        raise EncoderError(
            f"{path}: the self-test failed: features of a test image are not finite. The weights are damaged."
        )
    if torch.equal(features[0], features[1]):
        raise EncoderError(
            f"{path}: the self-test failed: two different images have equal features. The weights are damaged."
        )
