"""Find a diffusers pipeline in a folder or on the hub, and inspect it without loading it."""

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
"""Names of the argument of unCLIP pipelines that takes embeddings."""

_WAYS = (
    "A generator is 'embedded:digits', a folder that a diffusers pipeline was saved to (save_pretrained), the id of a "
    "pipeline on the hub ('org/name'; without a network, it must be in the cache of huggingface_hub), or a function "
    "(prompts, seeds) -> images."
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline on disk that has not been loaded.

    Attributes:
        name: Name given by the user.
        folder: Folder with ``model_index.json``.
        kind: Name of its class in diffusers.
        parts: Names of its components.
        takes: Names of the arguments of a call.
    """

    name: str
    folder: Path
    kind: str
    parts: frozenset[str]
    takes: frozenset[str]

    def argument(self, *names: str) -> str:
        """Return the first of the names that is an argument of a call.

        Raises:
            GeneratorError: None of them is.
        """
        for name in names:
            if name in self.takes:
                return name
        raise GeneratorError(
            f"{self.name} is a {self.kind}, which takes {', '.join(sorted(self.takes))}, but no {' or '.join(names)}."
        )


def find_pipeline(name: str, *, local_files_only: bool = False, decodes: bool = False) -> Pipeline:
    """Find a pipeline in a folder or on the hub, download it if necessary, and check it without loading it.

    Args:
        name: See :class:`DiffusersGenerator`.
        local_files_only: Do not access the hub.
        decodes: Whether the pipeline must take image embeddings and contain their encoder, rather than take prompts.

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
            raise GeneratorError(f"{name} has no {part}, so its CLIP cannot be compared with the encoder.")
    return found


def _folder(name: str, *, local_files_only: bool) -> Path:
    """Return the folder of a pipeline; download the pipeline if necessary.

    Raises:
        GeneratorError: It is neither a folder nor available on the hub.
    """
    if importlib.util.find_spec("diffusers") is None or importlib.util.find_spec("transformers") is None:
        raise GeneratorError(
            f"generator={name!r} needs diffusers and transformers: pip install 'lightning-failures[diffusion]'."
        )
    folder = Path(name).expanduser()
    if folder.exists():
        return folder
    if not _HUB_ID.fullmatch(name):
        raise GeneratorError(f"generator={name!r} is neither a folder nor the id of a hub pipeline. {_WAYS}")
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
        raise GeneratorError(f"generator={name!r} is unavailable: {first_line(error)} {_WAYS}") from error
    with contextlib.suppress(Exception):  # the model card, for its licence
        hf_hub_download(name, "README.md", local_files_only=cached)
    return Path(found)


def _index(name: str, folder: Path) -> dict[str, Any]:
    """Read the index of the pipeline's components.

    Raises:
        GeneratorError: The folder contains no pipeline, or a pipeline with its own code.
    """
    try:
        index: dict[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GeneratorError(f"generator={name!r} is not a diffusers pipeline: {first_line(error)}. {_WAYS}") from error
    # "**" does not follow links to folders, "*" does
    code = sorted({path.name for pattern in ("**/*.py", "*/*.py") for path in folder.glob(pattern)})
    if code or not isinstance(index.get("_class_name"), str):
        raise GeneratorError(
            f"generator={name!r} contains its own code ({', '.join(code) or index.get('_class_name')}), which is never"
            " run. Build the pipeline yourself and pass a function (prompts, seeds) -> images."
        )
    return index


def _parameters(name: str, kind: str) -> frozenset[str]:
    """Return the argument names of a call to pipelines of a class.

    Raises:
        GeneratorError: The installed diffusers does not have the class.
    """
    import diffusers

    pipeline = getattr(diffusers, kind, None)
    if pipeline is None:
        raise GeneratorError(f"generator={name!r} is a {kind}, which diffusers {diffusers.__version__} does not have.")
    return frozenset(inspect.signature(pipeline.__call__).parameters) - {"self"}


def licence_of(folder: Path) -> str:
    """Return the ``license`` in the metadata of the model card, or ``"unknown"``."""
    try:
        parts = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        data = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        data = None
    if not isinstance(data, dict):
        return "unknown"
    licence = data.get("license") or "unknown"
    return str(data.get("license_name") or licence if licence == "other" else licence)
