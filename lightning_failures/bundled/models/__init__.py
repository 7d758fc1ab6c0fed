"""Small models of coloured digits in the package, for machines without a network.

``clip/`` is an open_clip model in open_clip's ``local-dir:`` format, ``robust/`` contains an adversarially trained CNN
and the same CNN trained without attacks, and ``diffusion/`` is a diffusion model that takes embeddings of that CLIP.
``quality.json`` in each folder holds figures measured on the stored files. The files are written by
``python -m scripts.bundled_models.train_clip``, ``... .train_robust`` and ``... .train_diffusion`` of the repository.

Files, each importing only from those above it::

    digit_diffusion  A small diffusion model of coloured digits, conditioned on one embedding of the digits-CLIP
    robust_cnn       The architecture of the packaged CNN, and a function that loads it
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_failures.bundled.models.robust_cnn import RobustCNN, Variant

__all__ = ["CLIP_FOLDER", "DIFFUSION_FOLDER", "ROBUST_FOLDER", "load_robust_cnn"]

CLIP_FOLDER: Path = Path(__file__).parent / "clip"
"""Loads as ``open_clip.create_model_and_transforms(f"local-dir:{CLIP_FOLDER}")``."""
ROBUST_FOLDER: Path = Path(__file__).parent / "robust"
"""Holds the three variants of :func:`load_robust_cnn`."""
DIFFUSION_FOLDER: Path = Path(__file__).parent / "diffusion"
"""``unet`` and ``scheduler`` as diffusers stores them; see
:mod:`~lightning_failures.bundled.models.digit_diffusion`."""


def load_robust_cnn(variant: Variant = "robust") -> RobustCNN:
    """Load the packaged CNN, in evaluation mode; see :class:`~lightning_failures.bundled.models.robust_cnn.RobustCNN`.

    Args:
        variant: ``"robust"`` (adversarially trained), or for comparison ``"plain"`` (trained on clean images only) or
            ``"untrained"`` (random weights, always the same).

    >>> load_robust_cnn("untrained").dim
    128
    """
    from lightning_failures.bundled.models.robust_cnn import load

    return load(ROBUST_FOLDER, variant)
