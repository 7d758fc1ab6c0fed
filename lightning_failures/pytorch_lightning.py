"""The same callback for code that imports ``pytorch_lightning``.

The two packages have classes of the same names that are not each other's. A Trainer takes any callback, but a
LightningCLI checks types; so this one is a Callback of both.
"""

from __future__ import annotations

try:
    from pytorch_lightning import Callback
except ImportError as error:
    raise ImportError(
        "lightning_failures.pytorch_lightning is for code that imports pytorch_lightning, which is not installed. With"
        " `lightning`, use lightning_failures.FailureModes."
    ) from error

from lightning_failures.callback import FailureModes as _FailureModes

__all__ = ["FailureModes"]


class FailureModes(_FailureModes, Callback):  # type: ignore[misc]
    """:class:`lightning_failures.FailureModes`, also a ``pytorch_lightning.Callback``."""

    __doc__ = _FailureModes.__doc__
