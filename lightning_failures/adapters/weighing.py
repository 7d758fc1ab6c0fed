"""Which training loaders an intervention can work through, and the sampler's place in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from lightning_failures.adapters.loaders import IndexRecorder
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.sampler import DrawState, WeightedEpochs

__all__ = ["checked_loader", "weigh_draws"]

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
    if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
        raise ConfigurationError(
            f"{REFUSED}a {type(loader).__name__} keeps its own place in an order that would be changed under it. Use a"
            " plain DataLoader: resuming at the end of an epoch needs no more."
        )
    _, batches = _owner(loader)
    if batches is not None and type(batches).__iter__ is not BatchSampler.__iter__:
        raise ConfigurationError(
            f"{REFUSED}{type(batches).__name__} makes batches in its own way, and single examples cannot be exchanged"
            " in them. Give the DataLoader a sampler= and a batch_size= instead, or leave interventions out."
        )
    return loader


def weigh_draws(loader: object, state: DrawState) -> Callable[[], None]:
    """Put the sampler of the interventions into a training loader, once; return what takes it out again.

    Raises:
        ConfigurationError: see :func:`checked_loader`.
    """
    loader = checked_loader(loader)
    owner, batches = _owner(loader)
    base = owner.sampler
    if isinstance(base, WeightedEpochs):
        return lambda: None
    sampler = WeightedEpochs(base, state, len(loader.dataset))  # type: ignore[arg-type]
    # DataLoader forbids to set it anew after it was built
    places = [place for place in (owner, loader) if place.__dict__.get("sampler") is base]
    for place in places:
        place.__dict__["sampler"] = sampler
    if batches is None:
        loader._iterator = None  # persistent workers of an earlier pass would go on with the sampler of then

    def restore() -> None:
        for place in places:
            if place.__dict__.get("sampler") is sampler:
                place.__dict__["sampler"] = base

    return restore


def _owner(loader: DataLoader[Any]) -> tuple[Any, Any]:
    """What holds the sampler of single indices (a batch sampler, or the loader itself), and the batch sampler."""
    batches: Any = loader.batch_sampler
    if batches is None and isinstance(loader.sampler, BatchSampler):  # the dataset takes lists of indices
        batches = loader.sampler
    while isinstance(batches, IndexRecorder):
        batches = batches.wrapped
    return (loader, None) if batches is None else (batches, batches)
