"""Any text-to-image pipeline of diffusers as a generator, and pipelines of the unCLIP type as decoders.

Weights come from a folder or from the hub, as safetensors only; code that lies beside them is never run.
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

_SAME_SPACE = 0.98  # cosine; rounding and resizing leave 0.999, other weights some 0
_PROBES = 8


class DiffusersGenerator:
    """A text-to-image pipeline, loaded when the first image is wanted.

    Every image has a generator of random numbers of its own, on the CPU, so that it depends on its prompt and its seed,
    not on its company or the device, up to rounding. A safety checker stays on.

    Args:
        name: A folder with ``model_index.json``, or the id of a pipeline on the hub, which is downloaded at once.
        device: Where it lives; default: an accelerator of CUDA if there is one, else the CPU.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; default: float16 on CUDA, else float32.
        steps: Denoising steps; default: that of the pipeline.
        guidance: Scale of classifier-free guidance; default: that of the pipeline.
        local_files_only: Never ask the hub. A folder never does.

    Attributes:
        name: As given.
        licence: What the metadata of its model card says, else ``"unknown"``.
        flagged: How many images the safety checker has replaced by black ones so far.

    Raises:
        GeneratorError: diffusers is not installed, there is no such pipeline, it would need code of its own to run, or
            it takes no prompts.
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
        asked = {"num_inference_steps": steps, "guidance_scale": guidance}
        self._options = {self._found.argument(key): value for key, value in asked.items() if value is not None}
        self._pipeline: Any = None

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Make an image for each prompt, from a seed of its own: (B, 3, H, W) uint8 on the CPU.

        Raises:
            GeneratorError: The weights cannot be loaded, or are no safetensors.
        """
        return self._run(seeds, prompt=list(prompts))

    def close(self) -> None:
        """Give the memory back; the next call loads the pipeline again."""
        self._pipeline = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(self, seeds: Sequence[int], **given: Any) -> Tensor:
        pipeline = self._open()
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        with frozen_inference(self.device), _own_numbers(self.device):
            output = pipeline(**given, **self._options, generator=generators, output_type="np")
        self.flagged += sum(bool(flag) for flag in getattr(output, "nsfw_content_detected", None) or ())
        return as_uint8(output.images, self.name)

    def _open(self) -> Any:
        if self._pipeline is None:
            import diffusers

            kind: Any = diffusers.DiffusionPipeline
            try:
                with isolated_build(), _no_bars():
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
            # releases of before mid-2026 do not know dtype= and load float32
            self._pipeline = pipeline.to(self.device, *(() if pipeline.dtype == self.dtype else (self.dtype,)))
        return self._pipeline


class DiffusersDecoder(DiffusersGenerator):
    """A pipeline that takes the image embeddings of a CLIP (unCLIP), such as ``StableUnCLIPImg2ImgPipeline``.

    It must be the CLIP of the failure directions. Their weights come in different formats, so they are compared by what
    they do: both embed the same pictures when the pipeline is loaded, and their embeddings must agree. Directions are
    unit vectors, but such pipelines take embeddings as their own encoder leaves them: they are given its usual length,
    that of the pipeline's ``image_normalizer``, else of the embedded pictures.

    Args:
        name: See :class:`DiffusersGenerator`, like all other options.
        encoder: The encoder that it shares.
        options: Of :class:`DiffusersGenerator`.

    Attributes:
        encoder_fingerprint: ``fingerprint`` of that encoder.

    Raises:
        GeneratorError: The pipeline takes no embeddings, has no image encoder to compare, or one of another dimension;
            on the first call, one that embeds pictures otherwise.
    """

    _decodes = True

    def __init__(self, name: str, *, encoder: Encoder, **options: Any) -> None:
        super().__init__(name, **options)
        self.encoder_fingerprint = encoder.fingerprint
        self._encoder = encoder
        self._length = 1.0
        config = json.loads((self._found.folder / "image_encoder" / "config.json").read_text())
        if config.get("projection_dim", encoder.dim) != encoder.dim:
            raise self._another(f"its embeddings have {config['projection_dim']} dimensions, not {encoder.dim}")

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Decode the text embeddings of the prompts; a pipeline that takes prompts as well gets them.

        Raises:
            GeneratorError: The encoder knows no texts.
        """
        if not gives_texts(self._encoder):
            raise GeneratorError(f"{self.name} decodes embeddings, and {self._encoder.name} cannot embed prompts.")
        return self._decode(list(prompts), self._encoder.encode_texts(list(prompts)), seeds)

    def decode(self, embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        """Make an image for each embedding (B, D): (B, 3, H, W) uint8 on the CPU.

        Raises:
            GeneratorError: See the class.
        """
        return self._decode([""] * len(embeddings), embeddings, seeds)

    def _decode(self, prompts: list[str], embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        self._open()
        rows = F.normalize(embeddings.float(), dim=-1) * self._length
        given: dict[str, Any] = {self._found.argument(*EMBEDDINGS): rows.to(self.device, self.dtype)}
        if "prompt" in self._found.takes:
            given["prompt"] = prompts
        return self._run(seeds, **given)

    def _open(self) -> Any:
        if self._pipeline is None:
            pipeline = super()._open()
            pictures = _pictures()
            with frozen_inference(self.device):
                own = _embed(pipeline, pictures, self.device, self.dtype)
            cosine = F.cosine_similarity(own, self._encoder.encode_images(pictures), dim=-1)
            if not float(cosine.min()) >= _SAME_SPACE:  # also for NaN
                self.close()
                raise self._another(f"the same picture is embedded with a cosine of {float(cosine.min()):.2f}")
            normalizer = getattr(pipeline, "image_normalizer", None)
            usual = own.norm(dim=1).mean()
            if normalizer is not None:
                usual = torch.cat([normalizer.mean.detach(), normalizer.std.detach()]).float().norm()
            self._length = float(usual)
        return self._pipeline

    def _another(self, why: str) -> GeneratorError:
        return GeneratorError(
            f"{self.name} decodes the embeddings of another encoder than {self._encoder.name}: {why}. Name the encoder"
            " of the pipeline as encoder of FailureModes, or use captions (prompt='hard')."
        )


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name not in known:
        raise GeneratorError(f"dtype must be one of {', '.join(known)}; got {name!r}.")
    return known[name]


def _pictures() -> Tensor:
    """(8, 3, 224, 224) in [0, 1], soft patches of colour, always the same."""
    patches = torch.rand(_PROBES, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    return F.interpolate(patches, 224, mode="bicubic", align_corners=False).clamp(0, 1)


def _embed(pipeline: Any, pictures: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Through the pipeline's own preprocessing and encoder: (B, D) float32 on the CPU."""
    from PIL import Image

    images = [Image.fromarray(picture) for picture in as_uint8(pictures, "").permute(0, 2, 3, 1).numpy()]
    pixels = pipeline.feature_extractor(images=images, return_tensors="pt").pixel_values
    embedded: Tensor = pipeline.image_encoder(pixels.to(device, dtype)).image_embeds
    return embedded.float().cpu()


@contextlib.contextmanager
def _own_numbers(device: torch.device) -> Iterator[None]:
    """A pipeline may draw beside its generators; the generators of torch are given back as they were."""
    devices = [] if device.type != "cuda" else [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=devices):
        yield


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Loading draws bars of its own, which would break those of the Trainer."""
    from diffusers.utils import logging as ours
    from transformers.utils import logging as theirs

    shown = [one for one in (ours, theirs) if one.is_progress_bar_enabled()]
    for one in shown:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in shown:
            one.enable_progress_bar()
