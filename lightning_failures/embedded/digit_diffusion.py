"""A small diffusion model of coloured digits, conditioned on one embedding of the digits-CLIP.

It is a plain ``UNet2DConditionModel`` of diffusers with its scheduler, stored in diffusers' own folder format. The
2 x 2 pixels of a block are channels (16 x 16 x 12), the network predicts the velocity v (Salimans and Ho, Progressive
Distillation for Fast Sampling of Diffusion Models, ICLR 2022, appendix D), and DPM-Solver++ (Lu et al., 2022) needs a
dozen evaluations. An embedding of zeros stands for "no condition" (Ho and Salimans, Classifier-Free Diffusion Guidance,
2021). As in unCLIP (Ramesh et al., Hierarchical Text-Conditional Image Generation with CLIP Latents, 2022) captions and
images condition it through the space that they share; there is no prior in between, training shows it both kinds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DigitDiffusion", "as_condition", "from_latents", "load", "read_config", "to_latents"]

CHUNK = 16
"""Images that go through the network at once. Always so many, so that an image does not depend on its company."""


@dataclass(frozen=True)
class DigitDiffusion:
    """Network, scheduler and the defaults of sampling.

    Attributes:
        unet: ``diffusers.UNet2DConditionModel``, float32, in evaluation mode.
        scheduler: ``diffusers.DPMSolverMultistepScheduler``.
        steps: Evaluations of the network (pairs of them when guided).
        guidance: Scale of classifier-free guidance; 1 is none, and half the work.
    """

    unet: nn.Module
    scheduler: Any
    steps: int
    guidance: float

    @property
    def dim(self) -> int:
        """Length D of an embedding."""
        config: Any = self.unet.config
        return int(config.projection_class_embeddings_input_dim)

    @torch.no_grad()
    def sample(self, embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        """Make an image for each embedding, from a seed of its own.

        Args:
            embeddings: (B, D) float, unit vectors of the CLIP that the model was trained on.
            seeds: B seeds. Equal embedding and seed give an equal image, whatever the rest of the batch.

        Returns:
            (B, 3, 32, 32) uint8 on the CPU.
        """
        if len(seeds) == 0:
            return torch.empty(0, 3, 32, 32, dtype=torch.uint8)
        device = next(self.unet.parameters()).device
        noise = torch.stack([self._noise(seed) for seed in (*seeds, *[0] * (-len(seeds) % CHUNK))])
        conditions = F.pad(as_condition(embeddings.float().cpu()), [0, 0, 0, len(noise) - len(seeds)])
        latents = [
            self._denoise(x.to(device), condition.to(device)).cpu()
            for x, condition in zip(torch.split(noise, CHUNK), torch.split(conditions, CHUNK), strict=True)
        ]
        return from_latents(torch.cat(latents))[: len(seeds)]

    def _noise(self, seed: int) -> Tensor:
        config: Any = self.unet.config
        shape = (config.in_channels, config.sample_size, config.sample_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(int(seed)))

    def _denoise(self, x: Tensor, condition: Tensor) -> Tensor:
        """From noise (CHUNK, C, h, w) to latents. Deterministic: all chance is in the noise."""
        self.scheduler.set_timesteps(self.steps, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            for t in self.scheduler.timesteps:
                velocity = self.unet(x, t, None, class_labels=condition).sample
                if self.guidance != 1:
                    free = self.unet(x, t, None, class_labels=torch.zeros_like(condition)).sample
                    velocity = torch.lerp(free, velocity, self.guidance)
                x = self.scheduler.step(velocity, t, x).prev_sample
        return x


def to_latents(images: Tensor) -> Tensor:
    """Images (N, 3, 2h, 2w) uint8 -> (N, 12, h, w) float32 in [-1, 1].

    >>> to_latents(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([2, 12, 16, 16])
    """
    return F.pixel_unshuffle(images.float() / 127.5 - 1, 2)


def from_latents(latents: Tensor) -> Tensor:
    """The inverse of :func:`to_latents`; what lies outside [-1, 1] is clipped.

    >>> images = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    >>> torch.equal(from_latents(to_latents(images)), images)
    True
    """
    return ((F.pixel_shuffle(latents, 2).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def as_condition(embeddings: Tensor) -> Tensor:
    """Unit vectors (N, D) scaled to entries of unit variance, as a network likes its inputs; zeros stay zeros."""
    return embeddings * math.sqrt(embeddings.shape[1])


def read_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says: ``encoder_fingerprint`` (of the CLIP it goes with), ``steps`` and ``guidance``."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def load(folder: Path, *, device: str | torch.device = "cpu", guidance: float | None = None) -> DigitDiffusion:
    """Load ``folder/unet`` and ``folder/scheduler`` through diffusers, without the network; float32, ready to sample.

    Args:
        folder: What ``train_diffusion`` wrote.
        device: Where the network goes.
        guidance: Scale of classifier-free guidance; None for the one in ``config.json``.

    Raises:
        ImportError: diffusers is not installed.
        OSError: Files are missing.
    """
    from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel

    config = read_config(folder)
    # diffusers draws weights before it reads those on disk
    with torch.random.fork_rng(devices=()), torch.inference_mode(False):
        unet = UNet2DConditionModel.from_pretrained(
            folder,
            subfolder="unet",
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
        )
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    unet = unet.to(device).eval().requires_grad_(False)
    return DigitDiffusion(
        unet, scheduler, steps=config["steps"], guidance=config["guidance"] if guidance is None else guidance
    )
