"""The methods that explain errors, behind one protocol; a method of your own is one class and one line.

Files, each importing only from those above it::

    base        The protocol of a method
    directions  Failure directions (Jain et al., ICLR 2023)
    trees       Failure trees (Barlow: Singla et al., CVPR 2021)
    sparse      Sparse decision layers (Wong et al., ICML 2021)
    baselines   Other ways to find failures, for comparison only
"""

from __future__ import annotations

from typing import Any

from lightning_failures.errors import ConfigurationError
from lightning_failures.methods.base import Method
from lightning_failures.methods.baselines import Baselines
from lightning_failures.methods.directions import Directions
from lightning_failures.methods.sparse import SparseLayers
from lightning_failures.methods.trees import Trees

__all__ = ["Method", "methods_for", "register_method", "registered_methods"]

_METHODS: list[Method] = [Directions(), Trees(), SparseLayers(), Baselines()]
_BUILT_IN = tuple(method.name for method in _METHODS)


def register_method(method: Method) -> None:
    """Add a method to all callbacks that are set up from now on; one of the same name is replaced.

    Raises:
        ConfigurationError: The name is that of a built-in method, or no name.

    Example::

        register_method(MyMethod())
    """
    if not method.name.isidentifier() or method.name in _BUILT_IN:
        raise ConfigurationError(
            f"{type(method).__name__}.name must be an identifier other than {', '.join(map(repr, _BUILT_IN))}, got"
            f" {method.name!r}."
        )
    _METHODS[:] = [one for one in _METHODS if one.name != method.name] + [method]


def registered_methods() -> tuple[Method, ...]:
    """Return all methods, the built-in ones first."""
    return tuple(_METHODS)


def methods_for(callback: Any) -> tuple[Method, ...]:
    """Return the methods that the options of a ``FailureModes`` switch on."""
    return tuple(method for method in _METHODS if method.enabled(callback))
