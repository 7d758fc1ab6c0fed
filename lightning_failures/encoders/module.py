"""Use any ``nn.Module`` as an encoder: timm, torchvision, or the classifier itself (its "original latent space")."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lightning_failures.core.eval_mode import eval_mode
from lightning_failures.encoders.frozen import (
    as_device,
    fingerprint,
    first_line,
    freeze,
    frozen_inference,
    in_chunks,
    isolated_build,
    open_to_gradients,
)
from lightning_failures.encoders.preprocessing import Preprocessing, check_unit_images
from lightning_failures.errors import EncoderError, did_you_mean


class ModuleEncoder:
    """An encoder whose embedding is the output of one layer of a module, averaged over space.

    The module is unchanged: by default a deep copy is frozen; with ``copy=False`` the module is used in place, and its
    train or eval mode is restored and its hooks are removed after each call, also after an exception.

    Args:
        module: A module that takes images (B, C, H, W).
        layer: Name of a submodule, as in ``module.named_modules()``, whose output is read: feature maps (B, D, h, w),
            usually from the layer before global pooling, or vectors (B, D). If the layer runs several times in a
            forward pass, its last output counts.
        mean: Mean of each channel, for normalising images in [0, 1]. None: the module takes images in [0, 1].
        std: Standard deviation of each channel, as ``mean``.
        image_size: Size to which images are resized (shortest edge, bicubic) and centre-cropped. None: not resized.
        crop: Ratio of ``image_size`` to the resized shortest edge.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        name: Name for display; default: the class of the module and the layer.
        device: Device of the copy; None: the device of the module.
        copy: Whether to freeze a copy. If not, weights and fingerprint follow the module as it trains.
        batch_size: Images in one forward pass.

    Attributes:
        name: See above.
        fingerprint: 32 hex digits over architecture, weights, layer and preprocessing.
        dim: Length D of an embedding.
        has_maps: Whether the layer returns maps, so that ``encode_maps`` can be used.

    Raises:
        EncoderError: The layer does not exist, its output is neither (B, D, h, w) nor (B, D), or the module does not
            run on images.

    >>> net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> encoder = ModuleEncoder(net, "1", mean=[0.5] * 3, std=[0.5] * 3)
    >>> encoder.encode_images(torch.rand(2, 3, 8, 8)).shape, encoder.encode_maps(torch.rand(2, 3, 8, 8)).shape
    (torch.Size([2, 5]), torch.Size([2, 5, 6, 6]))
    """

    def __init__(
        self,
        module: nn.Module,
        layer: str,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | tuple[int, int] | None = None,
        crop: float = 1.0,
        interpolation: str = "bicubic",
        name: str | None = None,
        device: str | torch.device | None = None,
        copy: bool = True,
        batch_size: int = 256,
    ) -> None:
        module = getattr(module, "_orig_mod", module)  # a compiled module ignores hooks: use the one inside
        self.name = name or f"{type(module).__name__}:{layer}"
        self.layer = layer
        self.batch_size = batch_size
        self._copied = copy
        self._module = _frozen_copy(module, device) if copy else module
        if not copy and device is not None:
            raise EncoderError("ModuleEncoder(copy=False) uses the module on its own device; leave device=None.")
        channels = _input_channels(module)
        self.preprocessing = Preprocessing(
            size=(image_size, image_size) if isinstance(image_size, int) else image_size,
            mean=_per_channel("mean", mean, channels, 0.0),
            std=_per_channel("std", std, channels, 1.0),
            interpolation=interpolation,
            crop=crop,
        )
        if layer not in dict(module.named_modules()) or not layer:
            names = [known for known, _ in module.named_modules() if known]
            raise EncoderError(
                f"layer={layer!r} is not a submodule of {type(module).__name__}.{did_you_mean(layer, names)} "
                f"Its top level has {', '.join(known for known, _ in module.named_children()) or 'no submodules'}."
            )
        output = self._probe()
        if output.ndim not in (2, 4):
            raise EncoderError(
                f"layer={layer!r} returns {tuple(output.shape)}. "
                "Name a layer that returns feature maps (B, D, h, w) or vectors (B, D)."
            )
        self.has_maps = output.ndim == 4
        self.dim = output.shape[1]
        self._fingerprint = self._hash() if copy else None

    @property
    def device(self) -> torch.device:
        """Device of the model; the CPU if it has no tensors."""
        return next((t.device for t in self._module.state_dict().values()), torch.device("cpu"))

    @property
    def fingerprint(self) -> str:
        """32 hex digits over architecture, weights, layer and preprocessing."""
        return self._fingerprint or self._hash()

    def is_part_of(self, module: nn.Module) -> bool:
        """Return whether the encoder reads ``module`` or a part of it, in place or as a copy with the same weights."""
        own = list(self._module.parameters())
        if not own:
            return False
        shapes = [parameter.shape for parameter in own]
        for part in module.modules():
            others = list(part.parameters())
            if [parameter.shape for parameter in others] != shapes:
                continue
            if all(a is b or torch.equal(a.cpu(), b.cpu()) for a, b in zip(own, others, strict=True)):
                return True
        return False

    def encode_images(self, images: Tensor) -> Tensor:
        """Embed images (B, C, H, W) in [0, 1] as (B, D) float32 on the CPU: maps averaged over space, or the vectors.

        Raises:
            DataError: Images of another shape, or values outside [0, 1].
        """
        return self._encode(images, self._pool)

    def encode_maps(self, images: Tensor) -> Tensor:
        """Return the feature maps: (B, C, H, W) in [0, 1] -> (B, D, h, w) float32 on the CPU.

        Raises:
            EncoderError: The layer returns vectors.
            DataError: Images of another shape, or values outside [0, 1].
        """
        if not self.has_maps:
            raise EncoderError(
                f"{self.name}: layer {self.layer!r} returns vectors, not maps. Name a layer before pooling."
            )
        return self._encode(images, lambda output: output)

    def view(self, images: Tensor) -> Tensor:
        """Return the part of each image that the model sees, (B, C, h, w) float32 in [0, 1]; heat maps cover it."""
        with frozen_inference(self.device):
            return self.preprocessing.view(check_unit_images(images))

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield a differentiable function from the output of :meth:`view`, on the model's device, to features (B, D).

        Gradients are enabled even inside ``inference_mode``; autocast is disabled. No parameter receives a gradient if
        the caller differentiates with respect to the images alone, as ``torch.autograd.grad`` does.

        >>> encoder = ModuleEncoder(nn.Sequential(nn.Conv2d(1, 2, 3)), "0", mean=[0.5], std=[0.5])
        >>> with torch.inference_mode(), encoder.differentiable() as features:
        ...     x = torch.rand(1, 1, 8, 8).requires_grad_()
        ...     torch.autograd.grad(features(x)[0, 1], x)[0].shape
        torch.Size([1, 1, 8, 8])
        """
        with open_to_gradients(self.device), eval_mode(self._module):
            yield lambda seen: self._pool(self._run(self.preprocessing.normalize(seen))).float()

    def _pool(self, output: Tensor) -> Tensor:
        return output.float().mean((2, 3)) if self.has_maps else output

    def _encode(self, images: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        images = check_unit_images(images)
        with frozen_inference(self.device), eval_mode(self._module):
            return in_chunks(
                lambda chunk: reduce(self._run(self.preprocessing(chunk.to(self.device)))), images, self.batch_size
            )

    def _run(self, prepared: Tensor) -> Tensor:
        """Run the module on preprocessed images and return the output of the layer."""
        outputs: list[Tensor] = []
        handle = self._module.get_submodule(self.layer).register_forward_hook(
            lambda _module, _inputs, output: outputs.append(output)
        )
        try:
            dtype = next((p.dtype for p in self._module.parameters() if p.is_floating_point()), torch.float32)
            self._module(prepared.to(dtype))
        finally:
            handle.remove()
        if not outputs:
            raise EncoderError(f"layer={self.layer!r} is not reached by the forward pass. Name a layer that is.")
        if not isinstance(outputs[-1], Tensor):
            raise EncoderError(
                f"layer={self.layer!r} returns a {type(outputs[-1]).__name__}. Name a layer that returns a tensor."
            )
        return outputs[-1]

    def _probe(self) -> Tensor:
        """Return the output of the layer for one gray image, of the first size that the module takes."""
        size = self.preprocessing.size
        channels = len(self.preprocessing.mean)
        failure: Exception | None = None
        for height, width in [size] if size else [(64, 64), (32, 32), (28, 28), (224, 224)]:
            try:
                with isolated_build(), frozen_inference(self.device), eval_mode(self._module):
                    gray = torch.full((1, channels, height, width), 0.5, device=self.device)
                    return self._run(self.preprocessing(gray))
            except EncoderError:
                raise
            except Exception as error:
                failure = failure or error
        assert failure is not None
        remedy = "" if size else " If it takes images of one size only, set image_size."
        raise EncoderError(
            f"{self.name}: the module does not run on an image: {first_line(failure)}.{remedy}"
        ) from failure

    def _hash(self) -> str:
        structure = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self._module))
        return fingerprint(
            self._module,
            kind="module",
            structure=structure,
            layer=self.layer,
            preprocessing=dataclasses.asdict(self.preprocessing),
        )


def _frozen_copy(module: nn.Module, device: str | torch.device | None) -> nn.Module:
    home = next((t.device for t in module.state_dict().values()), torch.device("cpu"))
    try:
        with torch.inference_mode(False):
            duplicate = copy.deepcopy(module)
    except Exception as error:
        raise EncoderError(
            f"{type(module).__name__} cannot be copied ({first_line(error)}). "
            "Pass the part that computes the features, or set copy=False."
        ) from error
    return freeze(duplicate, as_device(device) if device is not None else home)


def _input_channels(module: nn.Module) -> int:
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else 3


def _per_channel(name: str, values: Sequence[float] | None, channels: int, default: float) -> tuple[float, ...]:
    given = (default,) * channels if values is None else tuple(float(v) for v in values)
    if len(given) == 1:
        given *= channels
    if len(given) != channels:
        raise EncoderError(f"{name} must have one value for each of the {channels} channel(s); got {len(given)}.")
    return given
