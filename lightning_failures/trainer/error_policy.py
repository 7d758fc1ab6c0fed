"""Errors of an analysis: warnings in a training run, exceptions where there is none to protect."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_failures.errors import ConfigurationError


class ErrorPolicy:
    """Turns errors into warnings, and emits each distinct message once.

    Attributes:
        last_error: The last error that became a warning in this validation, with its place; None if there was none.
        n_warned: Number of errors that have become warnings, and of analyses skipped with a warning.
    """

    def __init__(self) -> None:
        self.last_error: str | None = None
        self.n_warned = 0
        self._said: set[str] = set()

    @contextmanager
    def guard(
        self, trainer: Trainer, on_error: str, where: str, skipped: str, *, drops_analysis: bool = True
    ) -> Iterator[None]:
        """Turn an error of the block into a warning.

        A wrong configuration is raised unless a training is running: in the sanity check, ``trainer.validate`` and
        ``trainer.test`` it should be seen at once.

        Args:
            trainer: The Trainer.
            on_error: "warn", or "raise" to let every error through.
            where: Place of the block, for the message.
            skipped: What an error leaves out, for the message.
            drops_analysis: Whether an error leaves the validation without an analysis.
        """
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        try:
            yield
        except Exception as error:
            if on_error == "raise" or (not training and isinstance(error, ConfigurationError)):
                raise
            self.n_warned += 1
            message = f"{where}: {type(error).__name__}: {error}"
            if drops_analysis:
                self.last_error = message
            warnings.warn(f"FailureModes skips {skipped}. In {message}", stacklevel=3)

    def say_once(self, message: str, say: Callable[[str], None] = rank_zero_warn) -> None:
        """Emit a message, on rank 0, unless it was emitted before."""
        if message not in self._said:
            self._said.add(message)
            say(message)

    def say_skipped(self, message: str) -> None:
        """Warn once, on rank 0, that analyses are skipped."""
        self.n_warned += 1
        self.say_once(message)
