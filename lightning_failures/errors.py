"""The errors that this package raises on purpose.

FailureModesError
├── ConfigurationError (also ValueError)   a wrong option, found at set-up, before the first batch
├── DataError (also ValueError)            data that cannot be graded, embedded or read
├── EncoderError (also RuntimeError)       an encoder that cannot be loaded or does not fit its use
├── CacheError (also RuntimeError)         an embedding that the cache does not hold
└── GeneratorError (also RuntimeError)     images that cannot be generated or stored
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
    """Base class of all errors raised by lightning_failures."""


class ConfigurationError(FailureModesError, ValueError):
    """An option has a value that is not allowed."""


class DataError(FailureModesError, ValueError):
    """Batches, labels, logits, images or files do not have the required form."""


class EncoderError(FailureModesError, RuntimeError):
    """An encoder cannot be loaded or does not fit its use."""


class CacheError(FailureModesError, RuntimeError):
    """The embedding cache does not hold a requested embedding."""


class GeneratorError(FailureModesError, RuntimeError):
    """Images cannot be generated, or generated images cannot be stored."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the closest known spellings, or an empty string.

    >>> did_you_mean("ViT-B-23", ["ViT-B-32", "RN50"])
    ' Did you mean ViT-B-32?'
    """
    matches = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""
