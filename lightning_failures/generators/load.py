"""Load the generator that a user names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_failures.encoders import Encoder
from lightning_failures.errors import GeneratorError, did_you_mean
from lightning_failures.generators.base import ImageGenerator
from lightning_failures.generators.function import FunctionGenerator

_EMBEDDED = "embedded:digits"


def load_generator(
    spec: str | Path | ImageGenerator | Callable[[Sequence[str], Sequence[int]], Any],
    *,
    device: str | torch.device | None = None,
    local_files_only: bool = False,
    encoder: Encoder | None = None,
    **options: Any,
) -> ImageGenerator:
    """Return the generator that a string names; a generator object is returned unchanged, a function is wrapped.

    Weights are loaded when the first image is generated.

    Args:
        spec: ``"embedded:digits"`` (coloured digits, packaged); a folder that a diffusers pipeline was saved to, or the
            id of one on the hub; a function ``(prompts, seeds) -> images``
            (:class:`~lightning_failures.generators.FunctionGenerator`); or any
            :class:`~lightning_failures.generators.ImageGenerator`.
        device: Device of a loaded model; default: an accelerator if there is one.
        local_files_only: Do not access the hub.
        encoder: The CLIP whose embeddings are decoded, for unCLIP pipelines.
        options: Options of :class:`~lightning_failures.generators.DiffusersGenerator`, such as ``steps``.

    Raises:
        GeneratorError: The name is unknown or the generator is unavailable; the message lists generators that work
            without a network.

    >>> load_generator(lambda prompts, seeds: torch.zeros(len(seeds), 3, 8, 8)).name
    '<lambda>'
    """
    if not isinstance(spec, str | Path):
        return _checked(spec)
    name = str(spec)
    if name == _EMBEDDED:
        from lightning_failures.generators.digits import DigitsGenerator

        return DigitsGenerator() if device is None else DigitsGenerator(device=device)
    if name.startswith("embedded:"):
        raise GeneratorError(f"generator={name!r} is not packaged.{did_you_mean(name, [_EMBEDDED])}")
    close = did_you_mean(name, [_EMBEDDED])
    if close and not Path(name).exists():
        raise GeneratorError(f"generator={name!r} is unknown.{close}")
    from lightning_failures.generators.diffusers import DiffusersDecoder, DiffusersGenerator

    shared: dict[str, Any] = {"device": device, "local_files_only": local_files_only, **options}
    if encoder is None:
        return DiffusersGenerator(name, **shared)
    return DiffusersDecoder(name, encoder=encoder, **shared)


def _checked(spec: Any) -> ImageGenerator:
    if isinstance(spec, ImageGenerator):
        return spec
    if callable(spec):
        return FunctionGenerator(spec)
    raise GeneratorError(
        f"A generator must be a string, a path, a function (prompts, seeds) -> images, or an object with generate,"
        f" close, name and licence; got {type(spec).__name__}."
    )
