"""A small diffusion model of coloured digits, conditioned on one embedding of the digits-CLIP.

It is a ``UNet2DConditionModel`` of diffusers with its scheduler, stored in diffusers' folder format. Blocks of 2 x 2
pixels become channels (16 x 16 x 12), the network predicts the velocity from image to noise on a straight line (Lipman
et al., Flow Matching for Generative Modeling, ICLR 2023), and a dozen Euler steps lead back. An embedding of zeros
means "no condition" (Ho and Salimans, Classifier-Free Diffusion Guidance, arXiv 2207.12598). As in unCLIP (Ramesh et
al., Hierarchical Text-Conditional Image Generation with CLIP Latents, arXiv 2204.06125), captions and images condition
the model through their common space; instead of a prior between the two, training uses both kinds of embedding.

The embedding enters twice: added to the time embedding, as in diffusers, and as an input channel, a *sketch*: the
linear regression of the ink on the embedding, which shows where the ink may be. Without it, so small a network followed
the tint after 1,000 steps, but not yet the digit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK = 16
"""Images in one forward pass; constant (padded), so that an image does not depend on the size of the batch."""


@dataclass(frozen=True)
class DigitDiffusion:
    """Network, scheduler and the defaults of sampling.

    Attributes:
        unet: ``diffusers.UNet2DConditionModel``, float32, in evaluation mode.
        sketcher: (16 * 16, D) float32, maps an embedding to its sketch.
        scheduler: ``diffusers.FlowMatchEulerDiscreteScheduler``.
        steps: Evaluations of the network (pairs of them when guided).
        guidance: Scale of classifier-free guidance; 1 means no guidance and half the work.
    """

    unet: nn.Module
    sketcher: Tensor
    scheduler: Any
    steps: int
    guidance: float

    @property
    def dim(self) -> int:
        """Length D of an embedding."""
        return self.sketcher.shape[1]

    @torch.no_grad()
    def sample(self, embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        """Generate one image for each embedding and seed.

        Args:
            embeddings: (B, D) float, unit vectors of the CLIP that the model was trained on.
            seeds: B seeds. An image depends only on its embedding and seed, not on the rest of the batch.

        Returns:
            (B, 3, 32, 32) uint8 on the CPU.
        """
        if len(seeds) == 0:
            return torch.empty(0, 3, 32, 32, dtype=torch.uint8)
        device = self.sketcher.device
        noise = torch.stack([draw_noise(seed) for seed in (*seeds, *[0] * (-len(seeds) % CHUNK))])
        padded = F.pad(embeddings.float().cpu(), [0, 0, 0, len(noise) - len(seeds)])
        latents = [
            self._denoise(x.to(device), condition.to(device)).cpu()
            for x, condition in zip(torch.split(noise, CHUNK), torch.split(padded, CHUNK), strict=True)
        ]
        return from_latents(torch.cat(latents))[: len(seeds)]

    def _denoise(self, x: Tensor, embeddings: Tensor) -> Tensor:
        """Turn noise (CHUNK, 12, 16, 16) into latents, deterministically."""
        self.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / self.steps, self.steps), device=x.device)
        no_condition = torch.zeros_like(embeddings)
        with torch.autocast(x.device.type, enabled=False):
            for t in self.scheduler.timesteps:
                velocity = predict(self.unet, self.sketcher, x, t, embeddings)
                if self.guidance != 1:
                    unconditional = predict(self.unet, self.sketcher, x, t, no_condition)
                    velocity = torch.lerp(unconditional, velocity, self.guidance)
                x = self.scheduler.step(velocity, t, x).prev_sample
        return x


def predict(unet: nn.Module, sketcher: Tensor, x: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
    """Evaluate the network once.

    Args:
        unet: The network.
        sketcher: (256, D) float.
        x: (B, 12, 16, 16) float, points on the line from image to noise.
        t: (B,) or scalar, 1000 times the position on the line.
        embeddings: (B, D) float, unit vectors or zeros.

    Returns:
        (B, 12, 16, 16) float, the velocity: noise minus image.
    """
    sketch = (embeddings @ sketcher.T).view(-1, 1, *x.shape[2:])
    # networks train best on inputs of unit variance
    condition = embeddings * math.sqrt(embeddings.shape[1])
    velocity: Tensor = unet(torch.cat([x, sketch], dim=1), t, None, class_labels=condition).sample
    return velocity


def draw_noise(seed: int) -> Tensor:
    """Return the noise (12, 16, 16) of a seed."""
    return torch.randn(12, 16, 16, generator=torch.Generator().manual_seed(int(seed)))


def to_latents(images: Tensor) -> Tensor:
    """Convert images (N, 3, 2h, 2w) uint8 to latents (N, 12, h, w) float32 in [-1, 1].

    >>> to_latents(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([2, 12, 16, 16])
    """
    return F.pixel_unshuffle(images.float() / 127.5 - 1, 2)


def from_latents(latents: Tensor) -> Tensor:
    """Invert :func:`to_latents`; values outside [-1, 1] are clipped.

    >>> images = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    >>> torch.equal(from_latents(to_latents(images)), images)
    True
    """
    return ((F.pixel_shuffle(latents, 2).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``: ``encoder_fingerprint`` (of the CLIP it was trained with), ``steps`` and ``guidance``."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


def load(folder: Path, *, device: str | torch.device = "cpu", guidance: float | None = None) -> DigitDiffusion:
    """Load network, scheduler and sketcher from a folder, in float32 and without network access.

    Args:
        folder: A folder written by ``scripts.bundled_models.train_diffusion``.
        device: Device of the network.
        guidance: Scale of classifier-free guidance; None for the one in ``config.json``.

    Raises:
        ImportError: diffusers is not installed.
        OSError: Files are missing.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, UNet2DConditionModel

    config = read_config(folder)
    # diffusers initialises weights at random before it loads those on disk
    with torch.random.fork_rng(devices=()), torch.inference_mode(False):
        unet = UNet2DConditionModel.from_pretrained(
            folder,
            subfolder="unet",
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
        )
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    unet = unet.to(device).eval().requires_grad_(False)
    sketcher = load_file(folder / "sketcher.safetensors")["weight"].float().to(device)
    if guidance is None:
        guidance = config["guidance"]
    return DigitDiffusion(unet, sketcher, scheduler, steps=config["steps"], guidance=guidance)
