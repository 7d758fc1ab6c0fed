"""The packaged diffusion model of coloured digits: prompts and embeddings become images without a download."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_failures.bundled.models import DIFFUSION_FOLDER
from lightning_failures.bundled.models.digit_diffusion import load, read_config
from lightning_failures.encoders import load_encoder
from lightning_failures.encoders.base import TextEncoder
from lightning_failures.encoders.frozen import first_line, frozen_inference
from lightning_failures.errors import DataError, GeneratorError

if TYPE_CHECKING:
    from lightning_failures.bundled.models.digit_diffusion import DigitDiffusion


class DigitsGenerator:
    """An EmbeddingDecoder that makes coloured digits, 32 x 32, from captions or embeddings of ``"embedded:digits"``.

    Nothing is loaded before the first image. A caption is embedded by the digits-CLIP, and the embedding is decoded; no
    other words than those of the digits' captions mean anything to it.

    Args:
        folder: What ``scripts.bundled_models.train_diffusion`` wrote; the packaged model by default.
        device: Where network and encoder live. Equal seeds give equal images on one device.
        guidance: Scale of classifier-free guidance; None for the folder's own. 1 is none and takes half the time.

    Attributes:
        name: ``"embedded:digits"``, or the folder.
        licence: Licence of the weights.
        encoder_fingerprint: ``fingerprint`` of the CLIP that the model was trained on.

    Raises:
        GeneratorError: The folder holds no model.
    """

    def __init__(
        self,
        folder: str | Path = DIFFUSION_FOLDER,
        *,
        device: str | torch.device = "cpu",
        guidance: float | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.device = torch.device(device)
        packaged = self.folder == DIFFUSION_FOLDER
        self.name = "embedded:digits" if packaged else str(self.folder)
        self.licence = "Apache-2.0" if packaged else "unknown"
        try:
            config = read_config(self.folder)
            self.encoder_fingerprint: str = config["encoder_fingerprint"]
            self.guidance: float = config["guidance"] if guidance is None else guidance
        except (OSError, ValueError, KeyError) as error:
            raise GeneratorError(f"{self.folder} holds no diffusion model of digits: {error}.") from error
        self._encoder: TextEncoder | None = None
        self._model: DigitDiffusion | None = None

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Make an image for each prompt, from a seed of its own: (B, 3, 32, 32) uint8 on the CPU.

        Raises:
            DataError: Not one seed for each prompt.
            GeneratorError: See :meth:`decode`.
        """
        if isinstance(prompts, str):
            raise DataError(f"generate takes a sequence of prompts; for one prompt give [{prompts!r}].")
        self._load()
        assert self._encoder is not None
        return self.decode(self._encoder.encode_texts(prompts), seeds)

    def decode(self, embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        """Make an image for each embedding (B, 128), unit vectors: (B, 3, 32, 32) uint8 on the CPU.

        Raises:
            DataError: Embeddings of another length, or not one seed for each.
            GeneratorError: diffusers or files are missing, or the model goes with another CLIP than the packaged one.
        """
        model = self._load()
        dim = model.dim
        if embeddings.ndim != 2 or embeddings.shape[1] != dim or len(embeddings) != len(seeds):
            raise DataError(
                f"decode takes embeddings (B, {dim}) and B seeds; got {tuple(embeddings.shape)} and {len(seeds)} seeds."
            )
        with frozen_inference(self.device):
            return model.sample(F.normalize(embeddings.float(), dim=1), seeds)

    def close(self) -> None:
        """Give the memory back; the next call loads the model again."""
        self._encoder = self._model = None

    def _load(self) -> DigitDiffusion:
        if self._model is None:
            if importlib.util.find_spec("diffusers") is None:
                raise GeneratorError(
                    'the generator of digits needs an extra: pip install "lightning-failures[diffusion]".'
                )
            encoder = load_encoder("embedded:digits", device=self.device)
            assert isinstance(encoder, TextEncoder)
            if encoder.fingerprint != self.encoder_fingerprint:
                raise GeneratorError(
                    f"{self.name} was trained on embeddings of the encoder {self.encoder_fingerprint}, and "
                    f"'embedded:digits' is {encoder.fingerprint}: train it anew with "
                    "python -m scripts.bundled_models.train_diffusion."
                )
            try:
                self._model = load(self.folder, device=self.device, guidance=self.guidance)
            except Exception as error:
                raise GeneratorError(f"{self.folder} cannot be loaded: {first_line(error)}") from error
            self._encoder = encoder
        return self._model
