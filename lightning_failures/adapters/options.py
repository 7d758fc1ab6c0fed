"""What must hold of the options of the callback, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Intervention

__all__ = ["check_options"]

_TASKS = (None, "multiclass", "binary", "multilabel")
_AT_LEAST_1 = "an integer >= 1"


def check_options(modes: Any) -> None:
    """Refuse options of ``FailureModes``, which it holds under their names, that are out of range.

    Raises:
        ConfigurationError: With the option, what is allowed and what came.
    """
    for name, holds, allowed in _conditions(modes):
        if not holds:
            raise ConfigurationError(f"FailureModes({name}=...) must be {allowed}, got {getattr(modes, name)!r}.")


def _conditions(o: Any) -> Iterator[tuple[str, bool, str]]:
    """Name of an option, whether it is in order, what is allowed."""
    validations, acting = o.every_n_validations, o.interventions
    yield "metadata", not isinstance(o.metadata, str), "a sequence of names, like ['camera']"
    yield "every_n_epochs", o.every_n_epochs >= 1, _AT_LEAST_1
    yield "every_n_validations", validations is None or validations >= 1, f"None or {_AT_LEAST_1}"
    yield "min_coverage", 0 <= o.min_coverage <= 1, "a share from 0 to 1"
    yield "permutations", o.permutations >= 0, "an integer >= 0"
    yield "n_directions", o.n_directions >= 1, _AT_LEAST_1
    yield "reference", o.reference in ("validation", "train"), "'validation' or 'train'"
    yield "on_error", o.on_error in ("warn", "raise"), "'warn' or 'raise'"
    yield "task", o.task in _TASKS, "None, 'multiclass', 'binary' or 'multilabel'"
    known = isinstance(acting, Sequence) and all(isinstance(one, Intervention) for one in acting)
    yield "interventions", known, "a sequence of interventions, like [Upweight(factor=2.0)]"
    if acting:
        yield "encoder", o.encoder is not None, "an encoder: interventions need failure directions"
        yield "permutations", o.permutations > 0, "positive: without p-values no class has a pattern"
        yield "task", o.task != "multilabel", "another: interventions know one class an example"
        yield "verdict", o.verdict in (None, "fork", "lottery"), "None, 'fork' or 'lottery'"
    else:
        yield "verdict", o.verdict is None, "None without interventions"
        yield "auto_rollback", not o.auto_rollback, "False without interventions"
