"""Feature attacks: change an image until one of its features is as strong as possible, to show what it responds to.

Source: Singla et al., Barlow (CVPR 2021), section 4, "feature attack", with the settings of appendices B and C: 500
steps of length 1 within an L2 ball of radius 500 around an image of 224 x 224 pixels.

Lengths are L2 norms over all channels and pixels of images in [0, 1], as in the ``robustness`` library, which the
paper's models were trained with and whose attack moves images in [0, 1]. This is our reading, since the paper names no
unit: in units of [0, 255] all steps together would change a pixel by half a level. The box [0, 1] has a diagonal of
sqrt(3 * 224 * 224) = 388, so at the published radius the box, not the ball, bounds an image.

Departures: for fewer pixels than 224 x 224 (height times width as the model sees them, without channels) both lengths
are scaled with the square root of the number of pixels, so that a pixel moves as far on average. An image on which the
feature has no gradient stays unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_failures.core.arrays import unit_vectors
from lightning_failures.core.budget import Deadline
from lightning_failures.errors import DataError

ITERATIONS = 500
STEP = 1.0
RADIUS = 500.0
SIDE = 224


def attack_scale(height: int, width: int) -> float:
    """Return the factor on the paper's lengths for images of this size: at most 1.

    >>> attack_scale(224, 224), attack_scale(56, 56), attack_scale(500, 400)
    (1.0, 0.25, 1.0)
    """
    return min(1.0, math.sqrt(height * width) / SIDE)


def feature_attack(
    features: Callable[[Tensor], Tensor],
    images: Tensor,
    feature: int | Tensor,
    *,
    iterations: int = ITERATIONS,
    step: float | None = None,
    radius: float | None = None,
    deadline: Deadline | None = None,
    on_step: Callable[[], object] | None = None,
) -> Tensor | None:
    """Increase one feature of each image by normalised gradient ascent within an L2 ball around it and within [0, 1].

    The attack also works under ``no_grad`` and ``inference_mode``; no parameter receives a gradient.

    Args:
        features: (B, C, H, W) -> (B, D), differentiable; the features of an image must not depend on the others.
        images: (B, C, H, W) float in [0, 1], on the device of the model.
        feature: Index of the feature, one for all images or (B,) int64, so that several features share a batch.
        iterations: Number of steps.
        step: Length of a step; default: the paper's, scaled so that any number of iterations goes as far as 500.
        radius: Radius of the ball; default: the paper's, scaled to the size of the images.
        deadline: When to give up.
        on_step: Called after each step, for a progress bar.

    Returns:
        (B, C, H, W) float32 in [0, 1], or None if the deadline passed: an unfinished attack is not shown.

    Raises:
        DataError: Images of another shape, or ``feature`` is not in 0 ... D - 1.

    >>> images = torch.full((1, 1, 1, 2), 0.5)
    >>> moved = feature_attack(lambda x: x.flatten(1), images, 1, iterations=3, step=0.1, radius=0.2)
    >>> moved.flatten()  # three steps of 0.1 to the right, held at 0.2
    tensor([0.5000, 0.7000])
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise DataError(f"feature_attack: images must be (B, C, H, W) float; got {tuple(images.shape)} {images.dtype}.")
    scale = attack_scale(*images.shape[2:])
    step = STEP * scale * ITERATIONS / max(iterations, 1) if step is None else step
    radius = RADIUS * scale if radius is None else radius
    with torch.inference_mode(False), torch.enable_grad():  # tensors of inference mode cannot be differentiated
        start = images.detach().clone().float()
        chosen = torch.as_tensor(feature, device=start.device).clone().expand(len(start))
        bounds = (int(chosen.min()), int(chosen.max())) if len(start) else (0, 0)
        moved = start
        for _ in range(iterations if len(start) else 0):
            if deadline is not None and deadline.passed:
                return None
            gradient = _gradient(features, moved, chosen, bounds)
            ascent = unit_vectors(gradient.flatten(1)).view_as(gradient)
            moved = (start + _limited(moved + step * ascent - start, radius)).clamp(0, 1)
            if on_step is not None:
                on_step()
    return moved


def _gradient(features: Callable[[Tensor], Tensor], images: Tensor, chosen: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Return the gradient of the chosen feature of each image, (B, C, H, W); values that are not finite become 0."""
    images = images.detach().requires_grad_()
    values = features(images)
    if values.ndim != 2 or len(values) != len(images) or not 0 <= bounds[0] <= bounds[1] < values.shape[1]:
        raise DataError(
            f"feature_attack: features have shape {tuple(values.shape)}, which has no feature {bounds[0]}-{bounds[1]}."
        )
    strength = values.gather(1, chosen[:, None]).sum()
    (gradient,) = torch.autograd.grad(strength, images)
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def _limited(change: Tensor, radius: float) -> Tensor:
    """Shorten each change (B, C, H, W) to at most the radius; clipping to [0, 1] can only shorten it more."""
    lengths: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1)
    lengths = lengths.clamp(min=torch.finfo(change.dtype).tiny)
    return change * (radius / lengths).clamp(max=1.0).view(-1, 1, 1, 1)
