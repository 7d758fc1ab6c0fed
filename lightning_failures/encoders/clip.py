"""CLIP models through open_clip: the space in which failure directions and captions live."""

from __future__ import annotations

import dataclasses
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_failures.encoders.frozen import (
    as_device,
    fingerprint,
    first_line,
    freeze,
    frozen_inference,
    in_chunks,
    isolated_build,
)
from lightning_failures.encoders.open_clip_patches import cache_only, plain_tensors_only, quiet
from lightning_failures.encoders.preprocessing import Preprocessing, check_unit_images
from lightning_failures.errors import DataError, EncoderError, did_you_mean

_LOCAL_WAYS = (
    "Without a network: 'local-dir:FOLDER' (a folder with open_clip_config.json and open_clip_model.safetensors), the "
    "path of such a folder, OpenCLIPEncoder('weights.safetensors', arch='ViT-B-32-quickgelu'), a Hugging Face cache "
    "filled elsewhere (HF_HOME), the packaged 'embedded:digits', or 'efficientnet-lite0' for natural images (no "
    "captions)."
)
_PROBE_SECONDS = 5.0


class OpenCLIPEncoder:
    """A frozen CLIP model. Model, preprocessing and tokenizer come from one source and share a fingerprint.

    A training run does not affect it: it has its own device, float32 weights, eval mode and no autocast, and it leaves
    the random number generators unchanged. Weights in the local cache are used without asking the network. The
    embedding of an image does not depend on the batch, up to rounding.

    Args:
        name: ``"ARCH/TAG"`` as open_clip lists them (``"ViT-B-32/openai"``), ``"hf-hub:ORG/REPO"``,
            ``"local-dir:FOLDER"``, the path of such a folder, or of a checkpoint file (then ``arch`` is needed).
        device: Device of the model, independent of the Trainer's.
        arch: Name of an open_clip architecture, for a checkpoint file. It determines the activation, which the file
            does not record: weights trained with QuickGELU, such as OpenAI's, need the ``-quickgelu`` variant.
        preprocess: For a checkpoint file: ``{"mean": ..., "std": ..., "interpolation": ..., "resize_mode": ...}``;
            required if the published weights of ``arch`` differ in their preprocessing.
        batch_size: Images or texts in one forward pass.

    Attributes:
        name: As given.
        fingerprint: 32 hex digits over configuration, weights, preprocessing and tokenizer.
        dim: Length of an embedding.
        device: Device of the model.
        preprocessing: Resize, crop and normalisation that the weights expect.

    Raises:
        EncoderError: The model or tag does not exist; the weights are unavailable, do not fit or would run code; or the
            built model has another activation than the one that the weights were trained with.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str | torch.device = "cpu",
        arch: str | None = None,
        preprocess: Mapping[str, Any] | None = None,
        batch_size: int = 256,
    ) -> None:
        self.name = name
        self.device = as_device(device)
        self.batch_size = batch_size
        source = _resolve(name, arch, preprocess)
        with isolated_build(), quiet():
            model, self._tokenizer, config = _load(name, source)
        _check_activation(name, model, source.quick_gelu or bool(config.get("quick_gelu", False)))
        self.preprocessing = _preprocessing(model.visual.preprocess_cfg)
        self._model: Any = freeze(model, torch.device("cpu"))
        self.fingerprint = fingerprint(
            self._model,
            kind="open_clip",
            config=config,
            quick_gelu=source.quick_gelu,
            preprocessing=dataclasses.asdict(self.preprocessing),
            tokenizer=_describe_tokenizer(self._tokenizer),
        )
        self._model.to(self.device)
        self.dim = self.encode_images(torch.zeros(1, 3, 32, 32)).shape[1]

    def encode_images(self, images: Tensor) -> Tensor:
        """Embed images (B, C, H, W) in [0, 1] as (B, D) float32 unit vectors on the CPU; C is 1 or 3, uint8 is scaled.

        Raises:
            DataError: Images of another shape, or values outside [0, 1].
        """

        def embed(chunk: Tensor) -> Tensor:
            prepared = self.preprocessing(chunk.to(self.device))
            return F.normalize(self._model.encode_image(prepared).float(), dim=-1)

        images = check_unit_images(images)
        if not len(images):
            return torch.empty(0, self.dim, dtype=torch.float32)
        with frozen_inference(self.device):
            return in_chunks(embed, images, self.batch_size)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed M texts as (M, D) float32 unit vectors on the CPU.

        Raises:
            DataError: A single string instead of a sequence of strings.
        """
        if isinstance(texts, str):
            raise DataError(f"encode_texts takes a sequence of strings; for one string pass [{texts!r}].")

        def embed(chunk: Sequence[str]) -> Tensor:
            tokens = self._tokenizer(list(chunk)).to(self.device)
            return F.normalize(self._model.encode_text(tokens).float(), dim=-1)

        if not texts:
            return torch.empty(0, self.dim, dtype=torch.float32)
        with frozen_inference(self.device):
            return in_chunks(embed, texts, self.batch_size)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Arguments for open_clip.

    Attributes:
        model_name: Name of an architecture, or ``hf-hub:...`` or ``local-dir:...``.
        pretrained: Tag of published weights or path of a checkpoint file; None if ``model_name`` has weights.
        quick_gelu: Whether the weights were trained with QuickGELU.
        preprocess: Preprocessing, for a checkpoint file.
        remote: Whether the weights may be downloaded.
    """

    model_name: str
    pretrained: str | None = None
    quick_gelu: bool = False
    preprocess: Mapping[str, Any] | None = None
    remote: bool = False


def _resolve(name: str, arch: str | None, preprocess: Mapping[str, Any] | None) -> _Source:
    """Determine what open_clip must load for a name."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    path = Path(name).expanduser()
    if arch is not None:
        return _resolve_file(path, arch, preprocess)
    if name.startswith("hf-hub:"):
        return _Source(name, remote=True)
    if name.startswith("local-dir:") or path.is_dir():
        return _resolve_folder(Path(name.removeprefix("local-dir:")).expanduser())
    if path.is_file():
        raise EncoderError(
            f"{name} is a checkpoint file, which needs an architecture: OpenCLIPEncoder({name!r}, arch='ViT-B-32')."
        )
    model, _, tag = name.partition("/")
    config = get_pretrained_cfg(model, tag)
    if not config:
        known = ["/".join(pair) for pair in open_clip.list_pretrained()]
        tags = open_clip.list_pretrained_tags_by_model(model)
        listed = f" {model} has the tags {', '.join(tags)}." if tags and not tag else did_you_mean(name, known)
        raise EncoderError(
            f"encoder={name!r} is neither an open_clip model, ARCH/TAG, nor an existing path.{listed} {_LOCAL_WAYS}"
        )
    quick_gelu = bool(config.get("quick_gelu", False))
    return _Source(model, tag, quick_gelu=quick_gelu, remote=True)


def _resolve_folder(folder: Path) -> _Source:
    if not (folder / "open_clip_config.json").is_file():
        raise EncoderError(
            f"local-dir:{folder} is not an open_clip folder: open_clip_config.json is missing. {_LOCAL_WAYS}"
        )
    return _Source(f"local-dir:{folder}")


def _resolve_file(path: Path, arch: str, preprocess: Mapping[str, Any] | None) -> _Source:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    if not path.is_file():
        raise EncoderError(f"arch={arch!r} requires a checkpoint file, but {path} is not a file. {_LOCAL_WAYS}")
    if arch not in open_clip.list_models():
        raise EncoderError(
            f"arch={arch!r} is not an open_clip architecture.{did_you_mean(arch, open_clip.list_models())}"
        )
    if preprocess is None:
        keys = ("mean", "std", "interpolation", "resize_mode")
        tags = open_clip.list_pretrained_tags_by_model(arch)
        published = [{k: get_pretrained_cfg(arch, tag).get(k) for k in keys} for tag in tags]
        if not published or any(other != published[0] for other in published):
            raise EncoderError(
                f"The preprocessing of {path} is unknown: the published weights of {arch} do not share one. "
                "Set preprocess={'mean': ..., 'std': ..., 'interpolation': 'bicubic', 'resize_mode': 'shortest'}."
            )
        preprocess = published[0]
    return _Source(arch, str(path), preprocess=dict(preprocess))


def _load(name: str, source: _Source) -> tuple[Any, Callable[..., Tensor], dict[str, Any]]:
    """Load model, tokenizer and configuration: from disk if possible, else from the network if the hub answers."""
    try:
        with cache_only():
            return _load_with_open_clip(source)
    except EncoderError:
        raise
    except Exception as error:
        if not source.remote:
            raise EncoderError(f"encoder={name!r} cannot be loaded: {first_line(error)}") from error
        if not _hub_answers():
            raise EncoderError(
                f"encoder={name!r}: the weights are not on this machine and the model hub cannot be reached. "
                f"{_LOCAL_WAYS}"
            ) from error
    try:
        return _load_with_open_clip(source)
    except EncoderError:
        raise
    except Exception as error:
        raise EncoderError(f"encoder={name!r} cannot be loaded: {first_line(error)} {_LOCAL_WAYS}") from error


def _load_with_open_clip(source: _Source) -> tuple[Any, Callable[..., Tensor], dict[str, Any]]:
    import open_clip

    config = open_clip.get_model_config(source.model_name) or {}
    if "trust_remote_code" in json.dumps(config):  # open_clip passes the tokenizer's options on unchecked
        raise EncoderError(
            f"{source.model_name}: open_clip_config.json sets trust_remote_code, which would run code from the folder. "
            "Remove the option to load the model."
        )
    with plain_tensors_only():
        model = open_clip.create_model(
            source.model_name,
            pretrained=source.pretrained,
            force_quick_gelu=source.quick_gelu,
            force_preprocess_cfg=source.preprocess,
            require_pretrained=True,
            weights_only=True,
        )
    return model, open_clip.get_tokenizer(source.model_name), config


def _check_activation(name: str, model: nn.Module, quick_gelu: bool) -> None:
    """Check the activation of the built model: the wrong GELU gives plausible but wrong embeddings.

    Raises:
        EncoderError: The model has another activation than the one that the weights were trained with.
    """
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

    blocks = [module for module in model.modules() if isinstance(module, ResidualAttentionBlock)]
    wrong = [block for block in blocks if any(isinstance(m, QuickGELU) for m in block.modules()) != quick_gelu]
    if wrong:
        raise EncoderError(
            f"encoder={name!r}: the weights were trained {'with' if quick_gelu else 'without'} QuickGELU, but "
            f"{len(wrong)} of {len(blocks)} blocks of the built model are {'without' if quick_gelu else 'with'} it."
        )


def _preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocessing(
        size=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        resize_mode=config["resize_mode"],
        fill=config.get("fill_color", 0) / 255,
    )


def _describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Describe everything that determines token ids, including a probe of how text is cleaned and split."""
    inner: Any = getattr(tokenizer, "tokenizer", None)
    vocabulary = inner.get_vocab() if hasattr(inner, "get_vocab") else getattr(tokenizer, "encoder", {})
    probe = tokenizer(["A photo of an easy-going CAT's 3 pink\tumbrellas, naïve & wet."])
    return {
        "kind": type(tokenizer).__name__,
        "vocabulary": sorted(vocabulary.items()),
        "merges": sorted(getattr(tokenizer, "bpe_ranks", {}).items()),
        "probe": probe.tolist(),
    }


def _hub_answers() -> bool:
    """Return whether the model hub answers one request with a short timeout; any HTTP status counts."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310  the user configures the address
        urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
