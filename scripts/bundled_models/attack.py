"""L2 attacks by projected gradient ascent, for training and measuring robust models.

Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018, section 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_failures.core.arrays import unit_vectors

Loss = Callable[[Tensor], Tensor]


def pgd_l2(
    loss: Loss, images: Tensor, *, radius: float, steps: int, step_size: float, generator: torch.Generator | None = None
) -> Tensor:
    """Increase the loss of each image within an L2 ball around it and within [0, 1].

    Args:
        loss: (B, C, H, W) -> (B,); the loss of an image must not depend on the others in the batch.
        images: (B, C, H, W) float in [0, 1].
        radius: Radius of the ball; the norm is over all pixels and channels of one image.
        steps: Number of gradient steps.
        step_size: Length of a step, in the units of ``radius``.
        generator: Random generator of a start inside the ball; None starts at the image itself.

    Returns:
        (B, C, H, W), detached.

    >>> images = torch.full((1, 1, 2, 2), 0.5)
    >>> pgd_l2(lambda x: x.flatten(1).sum(dim=1), images, radius=0.2, steps=5, step_size=0.1).mean()
    tensor(0.6000)
    """
    delta = torch.zeros_like(images)
    if generator is not None:
        noise = torch.randn(images.shape, generator=generator)
        length = radius * torch.rand(len(images), generator=generator).view(-1, 1, 1, 1)
        delta = (images + _unit_images(noise) * length).clamp(0, 1) - images
    for _ in range(steps):
        with torch.enable_grad():
            moved = (images + delta).requires_grad_()
            (gradient,) = torch.autograd.grad(loss(moved).sum(), moved)
        delta = delta + step_size * _unit_images(gradient)
        delta = delta * (radius / _norm(delta)).clamp(max=1.0)
        # clamping shortens the difference in every coordinate, so the image stays in the ball
        delta = (images + delta).clamp(0, 1) - images
    return (images + delta).detach()


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the best wrong logit minus the right one: (B, K), (B,) -> (B,). Positive means a wrong prediction.

    Unlike the gradient of cross entropy, that of the margin does not vanish for confident predictions (Carlini and
    Wagner, Towards Evaluating the Robustness of Neural Networks, S&P 2017, section V).

    >>> margin(torch.tensor([[2.0, 0.5, -1.0]]), torch.tensor([0]))
    tensor([-1.5000])
    """
    right = logits.gather(1, labels[:, None]).squeeze(1)
    wrong = logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
    return wrong - right


def robust_correct(
    classify: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    radius: float,
    steps: int = 50,
    restarts: int = 3,
    seed: int = 0,
) -> Tensor:
    """Return which images stay correct under every one of several attacks on the margin.

    Args:
        classify: (B, C, H, W) in [0, 1] -> logits (B, K), in evaluation mode.
        images: (B, C, H, W) float in [0, 1].
        labels: (B,) int64.
        radius: Radius of the L2 ball.
        steps: Gradient steps of each attack, of length 2.5 radius / steps.
        restarts: Number of attacks; the first starts at the image, the others at random points.
        seed: Seed of the random starts.

    Returns:
        (B,) bool: correct before and after every attack.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        alive = classify(images).argmax(dim=1) == labels
    for restart in range(restarts):
        rows = alive.nonzero().squeeze(1)  # images that failed once need no other attack
        if len(rows) == 0:
            break
        x, y = images[rows], labels[rows]
        moved = pgd_l2(
            lambda z, y=y: margin(classify(z), y),  # type: ignore[misc]
            x,
            radius=radius,
            steps=steps,
            step_size=2.5 * radius / steps,
            generator=generator if restart else None,
        )
        with torch.no_grad():
            alive[rows] = classify(moved).argmax(dim=1) == y
    return alive


def _norm(x: Tensor) -> Tensor:
    """Return the L2 norm of each image, (B, C, H, W) -> (B, 1, 1, 1)."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norms.clamp(min=1e-12).view(-1, 1, 1, 1)


def _unit_images(images: Tensor) -> Tensor:
    return unit_vectors(images.flatten(1)).view_as(images)
