"""What joins the training set: the sources of examples, whether they fit, and which plans still hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Intervention
from lightning_failures.interventions.appended import AppendedDataset, added_index
from lightning_failures.interventions.sampler import SamplingSchedule


def sources_of(
    interventions: Mapping[str, Intervention], training_set: Any, folder_of: Callable[[str], Path]
) -> dict[int, Any]:
    """The examples that each intervention may add, by its number from 1.

    Raises:
        ConfigurationError: They could not be in one batch with those of the training set.
    """
    sources = {}
    for k, (name, one) in enumerate(interventions.items(), start=1):
        source = one.source(training_set, folder_of(name))
        if source is not None:
            sources[k] = source
            if len(source):
                _check_form(one, source[0], training_set[0])
    return sources


def appending(
    interventions: Mapping[str, Intervention], training_set: Any, sources: Mapping[int, Any]
) -> Callable[[Any], AppendedDataset] | None:
    """What makes the dataset of the loader, or None where examples stay as they are.

    Raises:
        ConfigurationError: Two names for the weights of the loss.
    """
    keys = {one.weight_key for one in interventions.values()} - {None}
    if len(keys) > 1:
        raise ConfigurationError(f"All interventions must have the same weight_key, got {sorted(map(str, keys))}.")
    if not sources and not keys:
        return None
    return lambda base: AppendedDataset(base, sources, weight_key=next(iter(keys), None))


def drop_plans_of_others(
    draws: SamplingSchedule, names: Sequence[str], size: int, sources: Mapping[int, Any]
) -> list[str]:
    """Drop plans of a checkpoint for a training set of another size, or with examples that are not there any more.

    Returns:
        The interventions that lost plans.
    """
    lost = []
    for k, name in enumerate(names, start=1):
        plans = draws.plans.get(name, [])
        limit = added_index(k, np.array([len(sources[k]) if k in sources else 0]))[0]
        kept = [plan for plan in plans if len(plan.weights) == size and bool((plan.added < limit).all())]
        if len(kept) < len(plans):
            draws.plans[name] = kept
            lost.append(name)
    return lost


def _check_form(one: Intervention, item: Any, own: Any) -> None:
    if _form(item) != _form(own):
        raise ConfigurationError(
            f"{type(one).__name__}: its examples look like {_form(item)}, those of the training set like {_form(own)}."
            " They must have the same form, through the same transform."
        )


def _form(item: Any) -> Any:
    """Types, keys and shapes of one example, as far as they decide how it is collated."""
    if isinstance(item, Mapping):
        return {key: _form(value) for key, value in sorted(item.items())}
    if isinstance(item, tuple | list):
        return [_form(value) for value in item]
    if isinstance(item, Tensor):
        # labels may be tensors here and integers there
        return "number" if item.ndim == 0 else f"{str(item.dtype).removeprefix('torch.')} {tuple(item.shape)}"
    return "number" if isinstance(item, int | float | np.number) else type(item).__name__
