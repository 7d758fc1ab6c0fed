"""Which training loaders an intervention can work through, and the place of its sampler and dataset in them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.appended import AppendedDataset
from lightning_failures.interventions.sampler import SamplingSchedule, WeightedSampler
from lightning_failures.trainer.index_recorder import IndexRecorder

REFUSED = "FailureModes(interventions=...) cannot work through this training loader: "


def checked_loader(loader: object) -> DataLoader[Any]:
    """Refuse a training loader whose examples cannot be named or weighed.

    Raises:
        ConfigurationError: with the remedy.
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
    _, batches = _owner(loader)
    if batches is not None and type(batches).__iter__ is not BatchSampler.__iter__ and not _of_torchdata(batches):
        raise ConfigurationError(
            f"{REFUSED}{type(batches).__name__} makes batches in its own way, and single examples cannot be exchanged"
            " in them. Give the DataLoader a sampler= and a batch_size= instead, or leave interventions out."
        )
    return loader


def is_stateful(loader: object) -> bool:
    """Whether a loader keeps its place in an epoch in checkpoints."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def original_dataset(loader: object) -> Any:
    """The user's own training set, or None."""
    dataset = getattr(loader, "dataset", None)
    return dataset.base if isinstance(dataset, AppendedDataset) else dataset


def weigh_draws(
    loader: object, state: SamplingSchedule, append: Callable[[Any], AppendedDataset] | None = None
) -> Callable[[], None]:
    """Put the sampler of the interventions into a training loader, once; return what takes it out again.

    Args:
        loader: It is changed in place.
        state: What the sampler draws by.
        append: Makes the dataset that stands in for the user's; None leaves it alone.

    Raises:
        ConfigurationError: see :func:`checked_loader`.
    """
    loader = checked_loader(loader)
    owner, batches = _owner(loader)
    base, dataset = owner.sampler, loader.dataset
    if isinstance(base, WeightedSampler):
        return lambda: None
    if append is not None and loader.batch_sampler is None and batches is not None:
        raise ConfigurationError(
            f"{REFUSED}its dataset takes lists of indices, and cannot be joined with other examples or weights. Give"
            " the DataLoader a batch_size=, or leave AddFiltered, AddSynthetic and weight_key out."
        )
    sampler = WeightedSampler(base, state, len(dataset))  # type: ignore[arg-type]
    # DataLoader forbids to set it anew after it was built
    puts: list[tuple[Any, str, Any, Any]] = [
        (place, "sampler", base, sampler) for place in (owner, loader) if place.__dict__.get("sampler") is base
    ]
    if append is not None:
        puts.append((loader, "dataset", dataset, append(dataset)))
    for place, name, _, new in puts:
        place.__dict__[name] = new
    if batches is None or append is not None:
        loader._iterator = None  # persistent workers of an earlier pass would go on with what was there then

    # a loader that Lightning has replaced must be free to go, and its workers with it
    weak = [(weakref.ref(place), name, old, new) for place, name, old, new in puts]
    whole = weakref.ref(loader)

    def restore() -> None:
        for reference, name, old, new in weak:
            place = reference()
            if place is not None and place.__dict__.get(name) is new:
                place.__dict__[name] = old
        if append is not None and (again := whole()) is not None:
            again._iterator = None

    return restore


def _of_torchdata(batches: Any) -> bool:
    """Whether these are the batches of a ``StatefulDataLoader``: as torch's, but for an iterator that has a state."""
    return type(batches).__module__.split(".")[0] == "torchdata"


def _owner(loader: DataLoader[Any]) -> tuple[Any, Any]:
    """What holds the sampler of single indices (a batch sampler, or the loader itself), and the batch sampler."""
    batches: Any = loader.batch_sampler
    if batches is None and isinstance(loader.sampler, BatchSampler):  # the dataset takes lists of indices
        batches = loader.sampler
    while isinstance(batches, IndexRecorder):
        batches = batches.wrapped
    return (loader, None) if batches is None else (batches, batches)
