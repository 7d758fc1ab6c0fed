"""Text-to-image pipelines of diffusers as generators, and unCLIP pipelines as decoders.

Weights come from a folder or from the hub, as safetensors only; code stored with them is never run.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_failures.encoders import Encoder
from lightning_failures.encoders.base import gives_texts
from lightning_failures.encoders.frozen import as_device, first_line, frozen_inference, isolated_build
from lightning_failures.errors import EncoderError, GeneratorError
from lightning_failures.generators.function import as_uint8
from lightning_failures.generators.pipelines import EMBEDDINGS, find_pipeline, licence_of

_MIN_COSINE = 0.98  # rounding and resizing leave 0.999; other weights give about 0
_PROBES = 8


class DiffusersGenerator:
    """A text-to-image pipeline, loaded when the first image is generated.

    Each image has its own random generator on the CPU, so that, up to rounding, it depends on its prompt and seed but
    not on the batch or the device. A safety checker stays on.

    Args:
        name: A folder with ``model_index.json``, or the id of a pipeline on the hub, which is downloaded immediately.
        device: Device of the pipeline; default: CUDA if available, else the CPU.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; default: float16 on CUDA, else float32.
        steps: Denoising steps; default: the pipeline's.
        guidance: Scale of classifier-free guidance; default: the pipeline's.
        local_files_only: Do not access the hub, which a folder never needs.

    Attributes:
        name: As given.
        licence: Licence in the metadata of the model card, else ``"unknown"``.
        flagged: Number of images that the safety checker has replaced by black ones so far.

    Raises:
        GeneratorError: diffusers is not installed, or the pipeline does not exist, contains code, or takes no prompts.
    """

    _decodes = False

    def __init__(
        self,
        name: str,
        *,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        local_files_only: bool = False,
    ) -> None:
        self.name = name
        try:
            self.device = as_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        except EncoderError as error:
            raise GeneratorError(f"generator={name!r}: {error}") from error
        self.dtype = _dtype(dtype, self.device)
        self.flagged = 0
        self._found = find_pipeline(name, local_files_only=local_files_only, decodes=self._decodes)
        self.licence = licence_of(self._found.folder)
        options = {"num_inference_steps": steps, "guidance_scale": guidance}
        self._options = {self._found.argument(key): value for key, value in options.items() if value is not None}
        self._pipeline: Any = None

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Generate one image for each prompt and seed: (B, 3, H, W) uint8 on the CPU.

        Raises:
            GeneratorError: The weights cannot be loaded, or are not safetensors.
        """
        return self._run(seeds, prompt=list(prompts))

    def close(self) -> None:
        """Release the pipeline's memory; the next call loads the pipeline again."""
        self._pipeline = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(self, seeds: Sequence[int], **inputs: Any) -> Tensor:
        """Call the pipeline with prompts or embeddings and return uint8 images."""
        pipeline = self._open()
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        with frozen_inference(self.device), _rng_restored(self.device):
            output = pipeline(**inputs, **self._options, generator=generators, output_type="np")
        self.flagged += sum(bool(flag) for flag in getattr(output, "nsfw_content_detected", None) or ())
        return as_uint8(output.images, self.name)

    def _open(self) -> Any:
        """Return the pipeline; load it if it is not in memory."""
        if self._pipeline is None:
            import diffusers

            kind: Any = diffusers.DiffusionPipeline
            try:
                with isolated_build(), _progress_bars_hidden():
                    pipeline = kind.from_pretrained(
                        self._found.folder,
                        dtype=self.dtype,
                        use_safetensors=True,
                        local_files_only=True,
                        low_cpu_mem_usage=importlib.util.find_spec("accelerate") is not None,
                    )
            except Exception as error:
                raise GeneratorError(f"generator={self.name!r} cannot be loaded: {first_line(error)}") from error
            pipeline.set_progress_bar_config(disable=True)
            # releases before mid-2026 ignore dtype= and load float32
            if pipeline.dtype == self.dtype:
                self._pipeline = pipeline.to(self.device)
            else:
                self._pipeline = pipeline.to(self.device, self.dtype)
        return self._pipeline


class DiffusersDecoder(DiffusersGenerator):
    """A pipeline that takes the image embeddings of a CLIP (unCLIP), such as ``StableUnCLIPImg2ImgPipeline``.

    The CLIP must be that of the failure directions. The weights of the two come in different formats, so their outputs
    are compared: when the pipeline is loaded, both embed the same pictures, and the embeddings must agree. Directions
    are unit vectors, but such pipelines expect embeddings as their own encoder returns them. Embeddings are therefore
    scaled to the typical length: that of the pipeline's ``image_normalizer``, else of the embedded pictures.

    Args:
        name: See :class:`DiffusersGenerator`.
        encoder: The encoder whose embeddings are decoded.
        options: Other options of :class:`DiffusersGenerator`.

    Attributes:
        encoder_fingerprint: Fingerprint of that encoder.

    Raises:
        GeneratorError: The pipeline takes no embeddings, or has no image encoder or one of another dimension; on the
            first call, its encoder returns other embeddings.
    """

    _decodes = True

    def __init__(self, name: str, *, encoder: Encoder, **options: Any) -> None:
        super().__init__(name, **options)
        self.encoder_fingerprint = encoder.fingerprint
        self._encoder = encoder
        self._length = 1.0
        config = json.loads((self._found.folder / "image_encoder" / "config.json").read_text(encoding="utf-8"))
        if config.get("projection_dim", encoder.dim) != encoder.dim:
            raise self._wrong_encoder(f"its embeddings have {config['projection_dim']} dimensions, not {encoder.dim}")

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Decode the text embeddings of the prompts, and pass on the prompts if the pipeline takes them.

        Raises:
            GeneratorError: The encoder has no text tower.
        """
        if not gives_texts(self._encoder):
            raise GeneratorError(
                f"{self.name} decodes embeddings, but encoder {self._encoder.name} has no text tower to embed prompts."
            )
        return self._decode(list(prompts), self._encoder.encode_texts(list(prompts)), seeds)

    def decode(self, embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        """Generate one image for each embedding (B, D): (B, 3, H, W) uint8 on the CPU.

        Raises:
            GeneratorError: See the class.
        """
        return self._decode([""] * len(embeddings), embeddings, seeds)

    def _decode(self, prompts: list[str], embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        self._open()
        rows = F.normalize(embeddings.float(), dim=-1) * self._length
        inputs: dict[str, Any] = {self._found.argument(*EMBEDDINGS): rows.to(self.device, self.dtype)}
        if "prompt" in self._found.takes:
            inputs["prompt"] = prompts
        return self._run(seeds, **inputs)

    def _open(self) -> Any:
        """Return the pipeline; on loading, compare its encoder and measure the length of its embeddings."""
        if self._pipeline is None:
            pipeline = super()._open()
            pictures = _pictures()
            with frozen_inference(self.device):
                own = _embed(pipeline, pictures, self.device, self.dtype)
            cosine = F.cosine_similarity(own, self._encoder.encode_images(pictures), dim=-1)
            if not float(cosine.min()) >= _MIN_COSINE:  # also for NaN
                self.close()
                raise self._wrong_encoder(f"the same picture is embedded with a cosine of {float(cosine.min()):.2f}")
            normalizer = getattr(pipeline, "image_normalizer", None)
            length = own.norm(dim=1).mean()
            if normalizer is not None:
                length = torch.cat([normalizer.mean.detach(), normalizer.std.detach()]).float().norm()
            self._length = float(length)
        return self._pipeline

    def _wrong_encoder(self, reason: str) -> GeneratorError:
        return GeneratorError(
            f"{self.name} does not decode embeddings of {self._encoder.name}: {reason}. Set encoder of FailureModes to"
            " the encoder of the pipeline, or use captions (prompt='hard')."
        )


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise GeneratorError(f"dtype must be one of {', '.join(known)}; got {name!r}.")
    return known[name]


def _pictures() -> Tensor:
    """Return the pictures that encoders are compared on: soft colour patches, (8, 3, 224, 224) in [0, 1]."""
    patches = torch.rand(_PROBES, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return F.interpolate(patches, 224, mode="bicubic", align_corners=False).clamp(0, 1)


def _embed(pipeline: Any, pictures: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Embed pictures with the preprocessing and encoder of the pipeline: (B, D) float32 on the CPU."""
    from PIL import Image

    images = [Image.fromarray(picture) for picture in as_uint8(pictures, "").permute(0, 2, 3, 1).numpy()]
    pixels = pipeline.feature_extractor(images=images, return_tensors="pt").pixel_values
    embedded: Tensor = pipeline.image_encoder(pixels.to(device, dtype)).image_embeds
    return embedded.float().cpu()


@contextlib.contextmanager
def _rng_restored(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators after the block: a pipeline may draw from them besides its own generators."""
    devices = [] if device.type != "cuda" else [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def _progress_bars_hidden() -> Iterator[None]:
    """Hide progress bars of loading, which would break those of the Trainer."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    enabled = [module for module in (diffusers_logging, transformers_logging) if module.is_progress_bar_enabled()]
    for module in enabled:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in enabled:
            module.enable_progress_bar()
