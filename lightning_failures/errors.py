"""Every error that this package raises on purpose.

FailureModesError
├── ConfigurationError (also ValueError)   a wrong option: found at set-up, before the first batch
├── DataError (also ValueError)            data that cannot be graded or embedded as it is
├── EncoderError (also RuntimeError)       weights that cannot be had, or that do not fit
├── CacheError (also RuntimeError)         a cache folder that cannot be read or written
└── GeneratorError (also RuntimeError)     images that cannot be generated, or cannot be kept
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CacheError",
    "ConfigurationError",
    "DataError",
    "EncoderError",
    "FailureModesError",
    "GeneratorError",
    "did_you_mean",
]


class FailureModesError(Exception):
    """Base of all errors raised by lightning_failures."""


class ConfigurationError(FailureModesError, ValueError):
    """An option has a value that is not allowed."""


class DataError(FailureModesError, ValueError):
    """Batches, labels, logits or images are not what they should be."""


class EncoderError(FailureModesError, RuntimeError):
    """An encoder cannot be loaded or does not fit the request."""


class CacheError(FailureModesError, RuntimeError):
    """The embedding cache cannot be read or written."""


class GeneratorError(FailureModesError, RuntimeError):
    """Images cannot be generated, or what was generated cannot be kept."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names the closest known spellings, or an empty string.

    >>> did_you_mean("ViT-B-23", ["ViT-B-32", "RN50"])
    ' Did you mean ViT-B-32?'
    """
    matches = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""
