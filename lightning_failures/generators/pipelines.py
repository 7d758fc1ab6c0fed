"""Finding a pipeline of diffusers, in a folder or on the hub, without loading it."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lightning_failures.encoders.frozen import first_line
from lightning_failures.errors import GeneratorError

EMBEDDINGS = ("image_embeds", "image_embeddings")
"""What pipelines of the unCLIP type call the embeddings that they take."""

_WAYS = (
    "A generator is 'embedded:digits', a folder that a diffusers pipeline was saved to (save_pretrained), the id of "
    "one on the hub ('org/name'; without a network, one that is in the cache of huggingface_hub), or a function "
    "(prompts, seeds) -> images."
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    parts = frozenset(part for part, module in index.items() if isinstance(module, list) and module[0] is not None)
    found = Pipeline(name, folder, kind, parts, _parameters(name, kind))
    found.argument(*(EMBEDDINGS if decodes else ("prompt",)))
    for part in ("image_encoder", "feature_extractor") if decodes else ():
        if part not in found.parts:
            raise GeneratorError(f"{name} has no {part}, so that nobody can tell which CLIP it takes.")
    return found


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

    cached = True
    try:
        try:
            found = DiffusionPipeline.download(name, use_safetensors=True, local_files_only=True)
        except Exception:
            if local_files_only:
                raise
            found, cached = DiffusionPipeline.download(name, use_safetensors=True), False
    except Exception as error:
        raise GeneratorError(f"generator={name!r} cannot be had: {first_line(error)} {_WAYS}") from error
    with contextlib.suppress(Exception):  # the model card, for its licence
        hf_hub_download(name, "README.md", local_files_only=cached)
    return Path(found)


def _index(name: str, folder: Path) -> dict[str, Any]:
    """What the pipeline consists of."""
    try:
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError) as error:
        raise GeneratorError(f"generator={name!r} is no pipeline of diffusers: {first_line(error)}. {_WAYS}") from error
    code = sorted({path.name for pattern in ("**/*.py", "*/*.py") for path in folder.glob(pattern)})  # behind links too
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


def licence_of(folder: Path) -> str:
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
