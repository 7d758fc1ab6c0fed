"""The penultimate features of the live model, as functions of images: heat maps and attacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F

from lightning_failures.core.eval_mode import eval_mode
from lightning_failures.core.rng import isolated_rng
from lightning_failures.encoders.frozen import open_to_gradients
from lightning_failures.errors import ConfigurationError
from lightning_failures.report.images import normalize_maps
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.logits_hook import is_sharded
from lightning_failures.trainer.module_state import state_kept

_CELLS = 12
"""Cells of a heat map across an image, where the features are no means of maps."""

_TOLERANCE = 0.02
"""Largest distance of activations from those of the evaluation, as a share of the largest one."""


class _Forward(NamedTuple):
    """The penultimate features (B, D) of a forward pass, and the last maps (B, C, h, w) before them."""

    features: Tensor
    maps: Tensor | None


@dataclass(frozen=True)
class LiveFeatures:
    """The input of the model's last layer, by calls of its ``forward`` with images in [0, 1].

    An encoder of the kind that feature attacks need (:class:`~lightning_failures.encoders.base.DifferentiableEncoder`),
    with heat maps of single features. The model is in eval mode during calls and afterwards as before.

    Attributes:
        trainer: The Trainer with the model.
        head: Name of the last layer.
        space: The space of the images that the model takes.
        like: A batch as the model takes it, which gives dtype and device.
    """

    trainer: Trainer
    head: str
    space: ImageSpace
    like: Tensor

    @property
    def name(self) -> str:
        """Name of the model."""
        return type(self._module).__name__

    @property
    def fingerprint(self) -> str:
        """Empty: nothing is stored of a model that trains."""
        return ""

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._module.device

    @cached_property
    def dim(self) -> int:
        """D, the number of features."""
        return self.encode_images(torch.zeros(1, *self.like.shape[1:])).shape[1]

    @property
    def _module(self) -> LightningModule:
        return self.trainer.lightning_module

    def view(self, images: Tensor) -> Tensor:
        """Return the images as they are: they were read as the model sees them."""
        return images

    def encode_images(self, images: Tensor) -> Tensor:
        """Return the features (B, D) float32, on the CPU, of images (B, C, H, W) in [0, 1]."""
        with self.differentiable() as features, torch.no_grad():
            return features(images.to(self.device)).float().cpu()

    @contextmanager
    def differentiable(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Yield the function from images (B, C, H, W) in [0, 1] to features (B, D), which can be differentiated."""
        with self._calls() as forward:
            yield lambda images: forward(images).features.float()

    def heat_maps(self, images: Tensor, feature: int) -> Tensor:
        """Return where a feature is active on images (n, C, H, W) in [0, 1]: (n, h, w), each scaled to [0, 1].

        Where the features are means of the last feature maps, as before the last layer of most networks, it is the map
        of the feature. Elsewhere it is the length of the gradient of the feature by the pixels, in coarse cells.
        """
        with self._calls() as forward:
            seen = images.to(self.device).detach().clone().requires_grad_()
            found = forward(seen)
            if _are_means(found):
                assert found.maps is not None
                return normalize_maps(found.maps[:, feature].detach().float().cpu())
            (gradient,) = torch.autograd.grad(found.features[:, feature].sum(), seen)
        length = gradient.detach().float().square().sum(dim=1, keepdim=True).sqrt().cpu()
        cells = (min(_CELLS, length.shape[2]), min(_CELLS, length.shape[3]))
        return normalize_maps(F.adaptive_avg_pool2d(length, cells)[:, 0])

    def problem(self, images: Tensor, feature: int, values: Sequence[float]) -> str | None:
        """Return why the features of images are not those of the evaluation; None if they are.

        Args:
            images: (n, C, H, W) in [0, 1].
            feature: A feature.
            values: Its n activations in the evaluation.
        """
        if is_sharded(self.trainer):
            return f"{type(self.trainer.strategy).__name__} shards the model over processes"
        try:
            found = self.encode_images(images)[:, feature]
        except Exception as error:  # of the user's forward
            return f"{self.name}.forward does not take these images ({type(error).__name__}: {str(error)[:100]})"
        expected = torch.tensor(values, dtype=torch.float32)
        if not torch.allclose(found, expected, rtol=0, atol=_TOLERANCE * max(float(expected.abs().max()), 1e-6)):
            return f"{self.name}.forward computes other features of these images than its evaluation did"
        return None

    @contextmanager
    def _calls(self) -> Iterator[Callable[[Tensor], _Forward]]:
        """Return the function from images in [0, 1] to what a forward pass computes, for the block."""
        module = self._module
        maps: list[Tensor] = []
        inputs: list[Tensor] = []

        def keep_maps(_: Any, __: Any, output: Any) -> None:
            is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1
            if is_map and not inputs:
                maps[:] = [output]

        def keep_input(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs[:] = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)][:1]

        def forward(images: Tensor) -> _Forward:
            maps.clear()
            inputs.clear()
            with self.trainer.precision_plugin.val_step_context():
                module(self.space.from_unit(images, self.like.to(self.device)))
            if not inputs or inputs[0].ndim != 2:
                raise ConfigurationError(f"{self.name}.forward does not call {self.head!r} with features (B, D)")
            return _Forward(inputs[0], maps[0] if maps else None)

        with ExitStack() as stack:
            for context in (isolated_rng(), state_kept(module), eval_mode(module), open_to_gradients(self.device)):
                stack.enter_context(context)
            handles = [
                child.register_forward_hook(keep_maps) for name, child in module.named_modules() if name != self.head
            ]
            handles.append(module.get_submodule(self.head).register_forward_pre_hook(keep_input, with_kwargs=True))
            try:
                yield forward
            finally:
                for handle in handles:
                    handle.remove()


def _are_means(found: _Forward) -> bool:
    """Return whether the features are the means of the last maps over space."""
    if found.maps is None or found.maps.shape[:2] != found.features.shape:
        return False
    return torch.allclose(found.maps.float().mean((2, 3)), found.features.float(), rtol=1e-2, atol=1e-3)
