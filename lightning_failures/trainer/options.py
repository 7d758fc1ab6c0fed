"""What must hold of the options of the callback, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any

from lightning_failures.core.budget import read_bytes, read_time
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Intervention

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
    listed = isinstance(o.metadata, Sequence) and not isinstance(o.metadata, str)
    yield "metadata", listed, "a sequence of names, like ['camera']"
    yield "every_n_epochs", _at_least(1, o.every_n_epochs), _AT_LEAST_1
    yield "every_n_validations", validations is None or _at_least(1, validations), f"None or {_AT_LEAST_1}"
    every = o.pictures_every_n
    yield "pictures_every_n", every is None or _at_least(1, every), f"None or {_AT_LEAST_1}"
    yield "min_coverage", _at_least(0, o.min_coverage) and o.min_coverage <= 1, "a share from 0 to 1"
    yield "permutations", _at_least(0, o.permutations), "an integer >= 0"
    yield "n_directions", _at_least(1, o.n_directions), _AT_LEAST_1
    yield "time_budget", _reads(read_time, o.time_budget), "None, seconds, or a share of an epoch like '10%'"
    yield "memory_budget", _reads(read_bytes, o.memory_budget), "None, bytes, or a size like '2 GiB'"
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


def _at_least(least: int, value: Any) -> bool:
    """Also false for what is no number: null in a YAML file is None for any option."""
    number = isinstance(value, Real)
    return number and bool(value >= least)


def _reads(read: Callable[[Any], Any], value: Any) -> bool:
    try:
        return value is None or read(value) is not None
    except (TypeError, ValueError):
        return False
