"""Supported training loaders, and the sampler and dataset of the interventions inside them.

This is the one file that edits private state of a ``torch.utils.data.DataLoader``:

* ``DataLoader.__setattr__`` refuses a new ``sampler`` or ``dataset`` after construction, so the value in the loader's
  ``__dict__`` is replaced. A rebuilt loader is no alternative: Lightning has already wrapped this one, and a subclass
  may take other arguments.
* ``_iterator`` holds the iterator with persistent workers, which have copies of the old dataset; None starts new ones.

``tests/steering/test_loader_patch.py`` notices when these internals change.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_failures.errors import ConfigurationError, FailureModesError
from lightning_failures.interventions import Intervention
from lightning_failures.interventions.appended import AppendedDataset, added_index
from lightning_failures.interventions.sampler import SamplingSchedule, WeightedSampler
from lightning_failures.steering.class_order import in_class_order
from lightning_failures.trainer.dataset_attributes import dataset_class_names
from lightning_failures.trainer.index_recorder import IndexRecorder
from lightning_failures.trainer.readable import evenly_spaced, form_of

_TRIED = 8  # added examples that are read to compare their form

REFUSED = "FailureModes(interventions=...) cannot work with this training loader: "


# -- which loaders are supported ---------------------------------------------------------------------------------------


def checked_loader(loader: object) -> DataLoader[Any]:
    """Return a training loader if its examples have indices that a sampler can choose.

    Raises:
        ConfigurationError: The loader is not supported, with the remedy.
    """
    if not isinstance(loader, DataLoader):
        raise ConfigurationError(
            f"{REFUSED}it is a {type(loader).__name__}. Give a torch DataLoader over a map-style dataset."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigurationError(
            f"{REFUSED}{type(loader.dataset).__name__} is iterable, so its examples have no index. Give a map-style"
            " dataset, or leave interventions out."
        )
    _, batches = _sampler_owner(loader)
    stock = batches is None or type(batches).__iter__ is BatchSampler.__iter__
    if not stock and not _is_of_torchdata(batches):
        raise ConfigurationError(
            f"{REFUSED}{type(batches).__name__} makes batches in its own way, so single examples cannot be exchanged."
            " Give the DataLoader a sampler= and a batch_size= instead, or leave interventions out."
        )
    return loader


def is_stateful(loader: object) -> bool:
    """Return whether a loader saves its position within an epoch in checkpoints."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def original_dataset(loader: object) -> Any:
    """Return the user's own training set, or None."""
    dataset = getattr(loader, "dataset", None)
    return dataset.base if isinstance(dataset, AppendedDataset) else dataset


# -- added examples ----------------------------------------------------------------------------------------------------


def sources_of(
    interventions: Mapping[str, Intervention], training_set: Any, folder_of: Callable[[str], Path]
) -> dict[int, Any]:
    """Return the examples that each intervention can add, by its number from 1.

    Args:
        interventions: Name -> intervention.
        training_set: The user's training set.
        folder_of: Returns the folder of an intervention by name.

    Raises:
        ConfigurationError: The examples cannot share a batch with those of the training set, or have other classes.
    """
    sources = {}
    for k, (name, one) in enumerate(interventions.items(), start=1):
        source = in_class_order(one.source(training_set, folder_of(name)), dataset_class_names(training_set))
        if source is not None:
            sources[k] = source
            usable = np.setdiff1d(np.arange(len(source)), unusable_examples(source))
            _check_form(one, source, usable[evenly_spaced(len(usable), _TRIED)].tolist(), training_set[0])
    return sources


def unusable_examples(source: Any) -> NDArray[np.int64]:
    """Return the examples of a source that cannot be used, ascending; none if it does not say."""
    return np.asarray(getattr(source, "unusable", ()), dtype=np.int64)


def appended_dataset(
    interventions: Mapping[str, Intervention], training_set: Any, sources: Mapping[int, Any]
) -> Callable[[Any], AppendedDataset] | None:
    """Return the function that wraps the dataset of a loader, or None if examples stay unchanged.

    Raises:
        ConfigurationError: The interventions have different weight keys.
    """
    keys = {one.weight_key for one in interventions.values()} - {None}
    if len(keys) > 1:
        raise ConfigurationError(f"All interventions must have the same weight_key, got {sorted(map(str, keys))}.")
    if not sources and not keys:
        return None
    return lambda base: AppendedDataset(base, sources, weight_key=next(iter(keys), None))


def drop_stale_plans(
    schedule: SamplingSchedule, names: Sequence[str], size: int, sources: Mapping[int, Any]
) -> list[str]:
    """Drop plans of a checkpoint for a training set of another size, or with added examples that no longer exist.

    Added examples that cannot be used are left out of the plans that are kept.

    Args:
        schedule: The plans, changed in place.
        names: Names of the interventions in their order.
        size: Number of examples of the training set.
        sources: Number of an intervention from 1 -> the examples that it can add.

    Returns:
        The names of the interventions that lost plans.
    """
    lost = []
    for k, name in enumerate(names, start=1):
        plans = schedule.plans.get(name, [])
        available = len(sources[k]) if k in sources else 0
        limit = added_index(k, np.array([available]))[0]
        kept = [plan for plan in plans if len(plan.weights) == size and bool((plan.added < limit).all())]
        unusable = added_index(k, unusable_examples(sources.get(k)))
        if any(np.isin(plan.added, unusable).any() for plan in kept):
            kept = [replace(plan, added=plan.added[~np.isin(plan.added, unusable)]) for plan in kept]
        if plans:
            schedule.plans[name] = kept
        if len(kept) < len(plans):
            lost.append(name)
    return lost


def _check_form(one: Intervention, source: Any, numbers: Sequence[int], own: Any) -> None:
    """Raise an error if none of some examples that can be read has the form of those of the training set."""
    forms = []
    for number in numbers:
        try:
            forms.append(form_of(source[number]))
        except FailureModesError:
            raise
        except Exception as error:
            forms.append(f"unreadable ({type(error).__name__}: {error})")  # left out when the pool is read
        if forms[-1] == form_of(own):
            return
    if forms:
        raise ConfigurationError(
            f"{type(one).__name__}: its examples look like {forms[0]}, those of the training set like {form_of(own)}."
            " They must have the same form, through the same transform."
        )


# -- the edit of the loader --------------------------------------------------------------------------------------------


def install_sampler(
    loader: object, schedule: SamplingSchedule, append: Callable[[Any], AppendedDataset] | None = None
) -> Callable[[], None]:
    """Install the sampler of the interventions in a training loader, once; return the function that removes it.

    Args:
        loader: The training loader, changed in place.
        schedule: The plans that the sampler draws by.
        append: Wraps the user's dataset; None leaves it unchanged.

    Raises:
        ConfigurationError: The loader is not supported; see :func:`checked_loader`.
    """
    loader = checked_loader(loader)
    owner, batches = _sampler_owner(loader)
    base, dataset = owner.sampler, loader.dataset
    if isinstance(base, WeightedSampler):
        return lambda: None
    if append is not None and loader.batch_sampler is None and batches is not None:
        raise ConfigurationError(
            f"{REFUSED}its dataset takes lists of indices, so other examples or weights cannot be joined. Give the"
            " DataLoader a batch_size=, or leave AddFiltered, AddSynthetic and weight_key out."
        )

    # replace the attributes in __dict__, because DataLoader refuses to set them: (holder, name, old value, new value)
    sampler = WeightedSampler(base, schedule, len(dataset))  # type: ignore[arg-type]
    holders = [place for place in (owner, loader) if place.__dict__.get("sampler") is base]
    edits: list[tuple[Any, str, Any, Any]] = [(place, "sampler", base, sampler) for place in holders]
    if append is not None:
        edits.append((loader, "dataset", dataset, append(dataset)))
    for place, name, _, new in edits:
        place.__dict__[name] = new
    if batches is None or append is not None:
        loader._iterator = None  # persistent workers of an earlier epoch hold the old sampler and dataset

    return _undo(loader, edits, new_workers=append is not None)


def _undo(loader: DataLoader[Any], edits: list[tuple[Any, str, Any, Any]], *, new_workers: bool) -> Callable[[], None]:
    """Return the function that undoes edits of a loader, except those that something else has overwritten."""
    # weak references, so that a loader that Lightning has replaced is freed together with its workers
    weak_edits = [(weakref.ref(place), name, old, new) for place, name, old, new in edits]
    weak_loader = weakref.ref(loader)

    def undo() -> None:
        for reference, name, old, new in weak_edits:
            place = reference()
            if place is not None and place.__dict__.get(name) is new:
                place.__dict__[name] = old
        whole = weak_loader()
        if new_workers and whole is not None:
            whole._iterator = None

    return undo


def _is_of_torchdata(batches: Any) -> bool:
    """Return whether a batch sampler is that of a ``StatefulDataLoader``: torch's own, with a stateful iterator."""
    return type(batches).__module__.split(".")[0] == "torchdata"


def _sampler_owner(loader: DataLoader[Any]) -> tuple[Any, Any]:
    """Return the holder of the sampler of single indices (batch sampler or loader), and the batch sampler or None."""
    batches: Any = loader.batch_sampler
    if batches is None and isinstance(loader.sampler, BatchSampler):  # the dataset takes lists of indices
        batches = loader.sampler
    while isinstance(batches, IndexRecorder):
        batches = batches.wrapped
    return (loader, None) if batches is None else (batches, batches)
