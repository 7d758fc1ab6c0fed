"""The packaged diffusion model of coloured digits: images from prompts and embeddings, without a download."""

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
    """An EmbeddingDecoder of coloured digits, 32 x 32, from captions or embeddings of ``"embedded:digits"``.

    The model is loaded when the first image is generated. A caption is embedded by the digits-CLIP, which understands
    only the words of the digits' captions, and the embedding is decoded.

    Args:
        folder: A folder written by ``scripts.bundled_models.train_diffusion``; default: the packaged model.
        device: Device of network and encoder. Equal seeds give equal images on one device.
        guidance: Scale of classifier-free guidance; None: that of the folder. 1 means no guidance and half the time.

    Attributes:
        name: ``"embedded:digits"``, or the folder.
        licence: Licence of the weights.
        encoder_fingerprint: Fingerprint of the CLIP that the model was trained with.

    Raises:
        GeneratorError: The folder contains no model.
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
            raise GeneratorError(f"{self.folder} contains no diffusion model of digits: {error}.") from error
        self._encoder: TextEncoder | None = None
        self._model: DigitDiffusion | None = None

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Generate one image for each prompt and seed: (B, 3, 32, 32) uint8 on the CPU.

        Raises:
            DataError: The numbers of prompts and seeds differ.
            GeneratorError: See :meth:`decode`.
        """
        if isinstance(prompts, str):
            raise DataError(f"generate takes a sequence of prompts; for one prompt pass [{prompts!r}].")
        self._load()
        assert self._encoder is not None
        return self.decode(self._encoder.encode_texts(prompts), seeds)

    def decode(self, embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        """Generate one image for each embedding, unit vectors (B, 128): (B, 3, 32, 32) uint8 on the CPU.

        Raises:
            DataError: Embeddings of another length, or another number of seeds.
            GeneratorError: diffusers or files are missing, or the model was trained with another CLIP than the packaged
                one.
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
        """Release the model's memory; the next call loads the model again."""
        self._encoder = self._model = None

    def _load(self) -> DigitDiffusion:
        """Return the model; load it with its encoder if it is not in memory."""
        if self._model is None:
            if importlib.util.find_spec("diffusers") is None:
                raise GeneratorError(
                    'The generator of digits needs an extra: pip install "lightning-failures[diffusion]".'
                )
            encoder = load_encoder("embedded:digits", device=self.device)
            assert isinstance(encoder, TextEncoder)
            if encoder.fingerprint != self.encoder_fingerprint:
                raise GeneratorError(
                    f"{self.name} was trained on embeddings of encoder {self.encoder_fingerprint}, but "
                    f"'embedded:digits' is {encoder.fingerprint}. Train it again with "
                    "python -m scripts.bundled_models.train_diffusion."
                )
            try:
                self._model = load(self.folder, device=self.device, guidance=self.guidance)
            except Exception as error:
                raise GeneratorError(f"{self.folder} cannot be loaded: {first_line(error)}") from error
            self._encoder = encoder
        return self._model
