"""Any text-to-image pipeline of diffusers as a generator, and pipelines of the unCLIP type as decoders.

Weights come from a folder or from the hub, as safetensors only; code that lies beside them is never run.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from lightning_failures.encoders import Encoder
from lightning_failures.encoders.base import gives_texts
from lightning_failures.encoders.frozen import as_device, first_line, frozen_inference, isolated_build
from lightning_failures.errors import GeneratorError
from lightning_failures.generators.function import as_uint8

__all__ = ["DiffusersDecoder", "DiffusersGenerator", "Pipeline", "find_pipeline"]

_WAYS = (
    "A generator is 'embedded:digits', a folder that a diffusers pipeline was saved to (save_pretrained), the id of "
    "one on the hub ('org/name'; without a network, one that is in the cache of huggingface_hub), or a function "
    "(prompts, seeds) -> images."
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SAME_SPACE = 0.98  # cosine; rounding and resizing leave 0.999, other weights some 0
_PROBES = 8
_PROMPTS = ("prompt",)
_EMBEDDINGS = ("image_embeds", "image_embeddings")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline on disk that has not been loaded.

    Attributes:
        name: What the user called it.
        folder: With ``model_index.json``.
        kind: Its class in diffusers.
        parts: Names of its components.
        takes: Arguments of a call.
    """

    name: str
    folder: Path
    kind: str
    parts: frozenset[str]
    takes: frozenset[str]

    def argument(self, *names: str) -> str:
        """The first of these names that a call takes.

        Raises:
            GeneratorError: None of them.
        """
        for name in names:
            if name in self.takes:
                return name
        raise GeneratorError(
            f"{self.name} is a {self.kind}, which takes no {' or '.join(names)}, but {', '.join(sorted(self.takes))}."
        )


def find_pipeline(name: str, *, local_files_only: bool = False, decodes: bool = False) -> Pipeline:
    """Find a pipeline in a folder or on the hub, download it if need be, and check what can be told unloaded.

    Args:
        name: See :class:`DiffusersGenerator`.
        local_files_only: Never ask the hub.
        decodes: It must take image embeddings, and have the encoder that made them. Else it must take prompts.

    Raises:
        GeneratorError: As :class:`DiffusersGenerator`, or :class:`DiffusersDecoder` if ``decodes``.
    """
    folder = _folder(name, local_files_only=local_files_only)
    index = _index(name, folder)
    kind = index["_class_name"]
    found = Pipeline(name, folder, kind, frozenset(index), _parameters(name, kind))
    found.argument(*(_EMBEDDINGS if decodes else _PROMPTS))
    for part in ("image_encoder", "feature_extractor") if decodes else ():
        if part not in found.parts:
            raise GeneratorError(f"{name} has no {part}, so that nobody can tell which CLIP it takes.")
    return found


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
        self.device = as_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = _dtype(dtype, self.device)
        self.flagged = 0
        self._found = find_pipeline(name, local_files_only=local_files_only, decodes=self._decodes)
        self.licence = _licence(self._found.folder)
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
                        dtype=self.dtype,  # releases that do not know it load float32, and convert below
                        use_safetensors=True,
                        local_files_only=True,
                        low_cpu_mem_usage=importlib.util.find_spec("accelerate") is not None,
                    )
            except Exception as error:
                raise GeneratorError(f"generator={self.name!r} cannot be loaded: {first_line(error)}") from error
            pipeline.set_progress_bar_config(disable=True)
            self._pipeline = pipeline.to(self.device, self.dtype)
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
        given: dict[str, Any] = {self._found.argument(*_EMBEDDINGS): rows.to(self.device, self.dtype)}
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
                usual = (normalizer.mean.float().square().sum() + normalizer.std.float().square().sum()).sqrt()
            self._length = float(usual)
        return self._pipeline

    def _another(self, why: str) -> GeneratorError:
        return GeneratorError(
            f"{self.name} decodes the embeddings of another encoder than {self._encoder.name}: {why}. Name the encoder"
            " of the pipeline as encoder of FailureModes, or use captions (prompt='hard')."
        )


def _folder(name: str, *, local_files_only: bool) -> Path:
    """Where the files of a pipeline are."""
    if importlib.util.find_spec("diffusers") is None or importlib.util.find_spec("transformers") is None:
        raise GeneratorError(
            f"generator={name!r} needs diffusers and transformers: pip install 'lightning-failures[diffusion]'."
        )
    folder = Path(name).expanduser()
    if folder.exists():
        return folder
    if not _HUB_ID.fullmatch(name):
        raise GeneratorError(f"generator={name!r} is neither a folder nor the id of a pipeline on the hub. {_WAYS}")
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    try:
        try:
            found = DiffusionPipeline.download(name, use_safetensors=True, local_files_only=True)
        except Exception:
            if local_files_only:
                raise
            found = DiffusionPipeline.download(name, use_safetensors=True)
    except Exception as error:
        raise GeneratorError(f"generator={name!r} cannot be had: {first_line(error)} {_WAYS}") from error
    with contextlib.suppress(Exception):  # the model card, for its licence
        hf_hub_download(name, "README.md", local_files_only=local_files_only)
    return Path(found)


def _index(name: str, folder: Path) -> dict[str, Any]:
    """What the pipeline consists of."""
    try:
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError) as error:
        raise GeneratorError(f"generator={name!r} is no pipeline of diffusers: {first_line(error)}. {_WAYS}") from error
    code = sorted(path.name for path in folder.rglob("*.py"))
    if code or not isinstance(index.get("_class_name"), str):
        raise GeneratorError(
            f"generator={name!r} brings code of its own ({', '.join(code) or index.get('_class_name')}), which is never"
            " run. Build the pipeline yourself and give a function (prompts, seeds) -> images."
        )
    return index


def _parameters(name: str, kind: str) -> frozenset[str]:
    """The arguments that pipelines of this class take."""
    import diffusers

    pipeline = getattr(diffusers, kind, None)
    if pipeline is None:
        raise GeneratorError(f"generator={name!r} is a {kind}, which diffusers {diffusers.__version__} does not know.")
    return frozenset(inspect.signature(pipeline.__call__).parameters) - {"self"}


def _licence(folder: Path) -> str:
    """The ``license`` in the metadata at the top of the model card."""
    try:
        parts = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        data = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        data = None
    if not isinstance(data, dict):
        return "unknown"
    licence = data.get("license") or "unknown"
    return str(data.get("license_name") or licence if licence == "other" else licence)


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
