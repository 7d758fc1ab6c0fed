"""CLIP models through open_clip: the space in which failure directions and captions live."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    load_tensors,
    state_dict_of,
)
from lightning_failures.encoders.preprocessing import Preprocessing, check_unit_images
from lightning_failures.errors import DataError, EncoderError, did_you_mean

_LOCAL_WAYS = (
    "Without a network: 'local-dir:FOLDER' (open_clip_config.json beside open_clip_model.safetensors), the path of "
    "such a folder, OpenCLIPEncoder('weights.safetensors', arch='ViT-B-32-quickgelu'), a Hugging Face cache filled "
    "elsewhere (HF_HOME), the packaged 'embedded:digits', or 'efficientnet-lite0' for natural images (no captions)."
)
_PROBE_SECONDS = 5.0


class OpenCLIPEncoder:
    """A frozen CLIP model. Model, preprocessing and tokenizer come from one source and are fingerprinted together.

    Nothing of a training run touches it: it has its own device, float32 weights, eval mode, no autocast, and leaves the
    random number generators alone. Weights in the local cache are used without asking the network. Equal images give
    equal embeddings up to rounding when they come in batches of another size.

    Args:
        name: ``"ARCH/TAG"`` as open_clip lists them (``"ViT-B-32/openai"``), ``"hf-hub:ORG/REPO"``,
            ``"local-dir:FOLDER"``, the path of such a folder, or of a checkpoint file (then ``arch`` is needed).
        device: Where the model lives, whatever the Trainer uses.
        arch: Name of an open_clip architecture for a checkpoint file. It decides the activation: weights trained with
            QuickGELU (OpenAI's, for one) need the ``-quickgelu`` variant, and a file does not tell.
        preprocess: For a checkpoint file: ``{"mean": ..., "std": ..., "interpolation": ..., "resize_mode": ...}``,
            needed where the published weights of ``arch`` do not agree on them.
        batch_size: Images or texts that go through the model at once.

    Attributes:
        name: As given.
        fingerprint: 32 hex digits over configuration, weights, preprocessing and tokenizer.
        dim: Length of an embedding.
        device: Where the model lives.
        preprocessing: Resize, crop and normalisation, as the weights want them.

    Raises:
        EncoderError: No such model or tag, weights that cannot be had, do not fit or would run code, or an activation
            other than the one the weights were trained with.
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
        with isolated_build(), _quiet_open_clip():
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
            DataError: Images of another shape, or outside [0, 1].
        """

        def embed(chunk: Tensor) -> Tensor:
            return F.normalize(self._model.encode_image(self.preprocessing(chunk.to(self.device))).float(), dim=-1)

        images = check_unit_images(images)
        if not len(images):
            return torch.empty(0, self.dim, dtype=torch.float32)
        with frozen_inference(self.device):
            return in_chunks(embed, images, self.batch_size)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed M texts as (M, D) float32 unit vectors on the CPU.

        Raises:
            DataError: One string in place of a sequence of strings.
        """
        if isinstance(texts, str):
            raise DataError(f"encode_texts takes a sequence of strings; for one string give [{texts!r}].")

        def embed(chunk: Sequence[str]) -> Tensor:
            return F.normalize(self._model.encode_text(self._tokenizer(list(chunk)).to(self.device)).float(), dim=-1)

        if not texts:
            return torch.empty(0, self.dim, dtype=torch.float32)
        with frozen_inference(self.device):
            return in_chunks(embed, texts, self.batch_size)


@dataclasses.dataclass(frozen=True)
class _Source:
    """What open_clip is asked for."""

    model_name: str
    pretrained: str | None = None
    quick_gelu: bool = False
    preprocess: Mapping[str, Any] | None = None
    remote: bool = False


def _resolve(name: str, arch: str | None, preprocess: Mapping[str, Any] | None) -> _Source:
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
            f"{name} is a checkpoint file: say what it is a checkpoint of, OpenCLIPEncoder({name!r}, arch='ViT-B-32')."
        )
    model, _, tag = name.partition("/")
    config = get_pretrained_cfg(model, tag)
    if not config:
        known = ["/".join(pair) for pair in open_clip.list_pretrained()]
        tags = open_clip.list_pretrained_tags_by_model(model)
        listed = f" {model} has the tags {', '.join(tags)}." if tags and not tag else did_you_mean(name, known)
        raise EncoderError(
            f"encoder={name!r} is neither a model of open_clip, ARCH/TAG, nor an existing path.{listed} {_LOCAL_WAYS}"
        )
    quick_gelu = bool(config.get("quick_gelu", False))
    return _Source(model, tag, quick_gelu=quick_gelu, remote=True)


def _resolve_folder(folder: Path) -> _Source:
    if not (folder / "open_clip_config.json").is_file():
        raise EncoderError(
            f"local-dir:{folder} is no open_clip folder: open_clip_config.json is missing. {_LOCAL_WAYS}"
        )
    return _Source(f"local-dir:{folder}")


def _resolve_file(path: Path, arch: str, preprocess: Mapping[str, Any] | None) -> _Source:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    if not path.is_file():
        raise EncoderError(f"arch={arch!r} goes with a checkpoint file, and {path} is none. {_LOCAL_WAYS}")
    if arch not in open_clip.list_models():
        raise EncoderError(
            f"arch={arch!r} is no architecture of open_clip.{did_you_mean(arch, open_clip.list_models())}"
        )
    if preprocess is None:
        keys = ("mean", "std", "interpolation", "resize_mode")
        tags = open_clip.list_pretrained_tags_by_model(arch)
        published = [{k: get_pretrained_cfg(arch, tag).get(k) for k in keys} for tag in tags]
        if not published or any(other != published[0] for other in published):
            raise EncoderError(
                f"the preprocessing of {path} is unknown: no single one is published for {arch}. "
                "Give preprocess={'mean': ..., 'std': ..., 'interpolation': 'bicubic', 'resize_mode': 'shortest'}."
            )
        preprocess = published[0]
    return _Source(arch, str(path), preprocess=dict(preprocess))


def _load(name: str, source: _Source) -> tuple[Any, Callable[..., Tensor], dict[str, Any]]:
    """Load from what is on disk; only where that is not enough, and the hub answers, from the network."""
    try:
        with _cache_only():
            return _load_with_open_clip(source)
    except EncoderError:
        raise
    except Exception as error:
        if not source.remote:
            raise EncoderError(f"encoder={name!r} cannot be loaded: {first_line(error)}") from error
        if not _hub_answers():
            raise EncoderError(
                f"encoder={name!r}: the weights are not on this machine, and the model hub cannot be reached. "
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
    if "trust_remote_code" in json.dumps(config):  # open_clip hands the options of its tokenizer on as they are
        raise EncoderError(f"{source.model_name}: open_clip_config.json asks to run code, trust_remote_code. Refused.")
    with _plain_tensors():
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
    """The wrong GELU gives plausible, wrong embeddings: look at the model that was built, not at its configuration."""
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
    """All that decides the token ids: kind, length, vocabulary, and a probe of how text is cleaned and split."""
    inner: Any = getattr(tokenizer, "tokenizer", None)
    vocabulary = inner.get_vocab() if hasattr(inner, "get_vocab") else getattr(tokenizer, "encoder", {})
    probe = tokenizer(["A photo of an easy-going CAT's 3 pink\tumbrellas, naïve & wet."])
    return {
        "kind": type(tokenizer).__name__,
        "vocabulary": sorted(vocabulary.items()),
        "merges": sorted(getattr(tokenizer, "bpe_ranks", {}).items()),
        "probe": probe.tolist(),
    }


@contextlib.contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """Make a QuickGELU mismatch an error, and keep loading from writing to, or configuring, the user's logging.

    open_clip logs through the module functions of ``logging``, which put a handler on a root logger that has none.
    """

    def keep(record: logging.LogRecord) -> bool:
        return "open_clip" not in Path(record.pathname).parts

    root, placeholder = logging.getLogger(), logging.NullHandler()
    root.addHandler(placeholder)
    root.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*QuickGELU mismatch")
            yield
    finally:
        root.removeFilter(keep)
        root.removeHandler(placeholder)


@contextlib.contextmanager
def _plain_tensors() -> Iterator[None]:
    """Let open_clip read checkpoints through :func:`load_tensors` alone, which never runs code.

    Its own way has a back door: after a ``TypeError``, which the writer of a file can plan, it loads once more, without
    ``weights_only``.
    """
    from open_clip import factory

    def read(path: str, *_: Any, **__: Any) -> dict[str, Tensor]:
        state = state_dict_of(load_tensors(Path(path)), Path(path))
        wrapped = next(iter(state)).startswith("module.")
        return {key.removeprefix("module."): value for key, value in state.items()} if wrapped else state

    original = factory.load_state_dict
    factory.load_state_dict = read
    try:
        yield
    finally:
        factory.load_state_dict = original


@contextlib.contextmanager
def _cache_only() -> Iterator[None]:
    """Let open_clip find files in the Hugging Face cache, but never ask the network: its retries take most of a minute.

    ``hf_hub_download(local_files_only=True)`` is not enough, some releases of the hub's client connect all the same.
    """
    from huggingface_hub import try_to_load_from_cache
    from open_clip import pretrained

    def from_cache(repo_id: str, filename: str, revision: str | None = None, **options: Any) -> str:
        path = try_to_load_from_cache(repo_id, filename, revision=revision, cache_dir=options.get("cache_dir"))
        if not isinstance(path, str):
            raise FileNotFoundError(f"{filename} of {repo_id} is not in the cache")
        return path

    download = pretrained.hf_hub_download
    pretrained.hf_hub_download = from_cache
    try:
        yield
    finally:
        pretrained.hf_hub_download = download


def _hub_answers() -> bool:
    """One request with a short limit, through the proxies of the environment; any HTTP answer will do."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")  # noqa: S310  an address the user set
        urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
