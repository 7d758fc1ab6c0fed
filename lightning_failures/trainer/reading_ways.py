"""Read training examples as a validation would: by the first of several ways that gives the same images twice.

A training loader may mix or augment images in its ``collate_fn``, and hooks may expect the form of training batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lightning_failures.core.arrays import finite_rows
from lightning_failures.data.grading import are_distributions, cut_smoothed
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.base import LEFT_OUT
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.batch_transfer import BatchTransfer
from lightning_failures.trainer.example_reader import WORKER_OPTIONS, BatchForm, ExampleReader
from lightning_failures.trainer.normalization_guard import normalization_doubt
from lightning_failures.trainer.readable import evenly_spaced

VIEW = "train_analysis_dataset"
_READ_TWICE = 4  # of the examples by which a way of reading is judged, those that are read twice


class Fitness(IntEnum):
    """How well a way of reading examples serves."""

    UNREADABLE = 0
    DOUBTFUL = 1  # a normalisation that cannot be that of the images
    RANDOM = 2  # images differ when they are read twice
    AS_VALIDATION = 3


@dataclass(frozen=True)
class Trial:
    """A way of reading examples, after a few of them were read."""

    way: ExampleReader
    fitness: Fitness
    doubt: str | None = None


def training_ways(trainer: Trainer, loader: DataLoader[Any], dataset: Any, reader: BatchReader) -> list[ExampleReader]:
    """Return how the examples of a training loader may be read, in the order of preference.

    Batches are collated by the training loader, by the validation loader, or by torch; transfer hooks see a
    validation, and last a training.

    Args:
        trainer: The Trainer.
        loader: The training loader.
        dataset: Its examples, or the same examples through other transforms.
        reader: Reads the batches.
    """
    workers: dict[str, Any] = {name: getattr(loader, name) for name in WORKER_OPTIONS}
    forms = _forms(trainer, loader)
    return [
        ExampleReader(dataset, form, reader, BatchTransfer(trainer, training=training), workers, "training images")
        for form, training in [*((form, False) for form in forms), (forms[0], True)]
    ]


def _forms(trainer: Trainer, loader: DataLoader[Any]) -> list[BatchForm]:
    """Return the forms of batches to try: of the training loader, of the validation loader, and torch's own."""
    validation = (
        [] if trainer.val_dataloaders is None else CombinedLoader(trainer.val_dataloaders, "max_size").flattened
    )
    forms: list[BatchForm] = []
    loaders = [one for one in (loader, *validation[:1]) if isinstance(one, DataLoader)]
    for form in (*map(BatchForm.of, loaders), BatchForm(default_collate)):
        if form not in forms:
            forms.append(form)
    return forms


def best_trial(
    ways: Sequence[ExampleReader],
    *,
    seed: int,
    labelled: bool = True,
    read_labels: Callable[[Tensor], Tensor] | None = None,
) -> Trial:
    """Return the first way that reads some examples as a validation does, else the one that comes nearest to it.

    Args:
        ways: The ways, of the same examples.
        seed: Seed of random transforms.
        labelled: Whether a way must give the class of each example.
        read_labels: Reads the labels of a batch, and raises an error if they have another form; None:
            :func:`class_labels`.
    """
    best: Trial | None = None
    some = evenly_spaced(len(ways[0].dataset))
    for way in ways:
        trial = _try(way, some, seed, (read_labels or class_labels) if labelled else None)
        if best is None or trial.fitness > best.fitness:
            best = trial
        if best.fitness == Fitness.AS_VALIDATION:
            break
    assert best is not None
    return best


def _try(way: ExampleReader, some: Sequence[int], seed: int, read_labels: Callable[[Tensor], Tensor] | None) -> Trial:
    """Read some examples in one way; without ``read_labels`` they need no label."""
    # one worker, if there are any: a file that the dataset opens must not be shared with the workers of the training
    few = replace(way, workers=way.workers | {"num_workers": min(1, way.workers.get("num_workers", 0))})
    doubt: str | None = None
    n_usable = 0
    try:
        space = way.reader.space(way.dataset)
        for part in few.read(some, seed=seed):
            images, labels = way.images_of(part.record), part.record.labels
            if read_labels is not None:
                if labels is None:
                    return Trial(way, Fitness.UNREADABLE)
                read_labels(labels)
            doubt = doubt or normalization_doubt(images, space)
            unit_images, _ = space.to_unit_each(images)
            n_usable += int(finite_rows(unit_images).sum())
        if some and 2 * n_usable <= len(some):
            return Trial(way, Fitness.UNREADABLE)
        if doubt is not None:
            return Trial(way, Fitness.DOUBTFUL, doubt)
        varies = few.varies(some[:_READ_TWICE])
    except Exception:  # of the user's collate_fn or hook: another way may work, else the error is met in reading
        return Trial(way, Fitness.UNREADABLE)
    return Trial(way, Fitness.RANDOM if varies else Fitness.AS_VALIDATION)


def class_labels(labels: Tensor) -> Tensor:
    """Return the class of each training example, (B,) int64, a copy.

    Args:
        labels: (B,), (B, 1), or one-hot (B, K), smoothed or not. Smoothed labels of two classes count as 1 above 0.5;
            a label that is no whole number otherwise, or NaN, is ``LEFT_OUT``.

    Raises:
        ConfigurationError: The labels have another form.

    >>> import torch
    >>> class_labels(torch.tensor([0.95, 0.05, 2.0, 1.5])), class_labels(torch.tensor([[0.1, 0.9]]))
    (tensor([ 1,  0,  2, -1]), tensor([1]))
    """
    labels = labels.detach().cpu()
    if labels.ndim > 2:
        raise ConfigurationError(f"Interventions need one class for each training example, got {tuple(labels.shape)}.")
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not are_distributions(labels):
            raise ConfigurationError(
                "Interventions need one class for each training example, but labels of shape"
                f" {tuple(labels.shape)} are not one-hot. Give the datamodule a {VIEW} with integer labels."
            )
        return labels.argmax(1)
    labels = labels.reshape(-1)
    if not labels.is_floating_point():
        return labels.long().clone()
    labels = cut_smoothed(labels)
    whole = labels.isfinite() & (labels == labels.round())
    return labels.masked_fill(~whole, LEFT_OUT).long()


def condition_labels(labels: Tensor) -> Tensor:
    """Return which conditions of a multilabel task each training example has, (B, K) int64 of 0 and 1.

    A label that is unknown or impossible is ``LEFT_OUT``; smoothed ones count as 1 above 0.5.

    Args:
        labels: (B, K).

    Raises:
        ConfigurationError: The labels have another form.

    >>> import torch
    >>> condition_labels(torch.tensor([[0.9, 0.0, -1.0, torch.nan]])).tolist()
    [[1, 0, -1, -1]]
    """
    if labels.ndim != 2:
        raise ConfigurationError(f"Labels of training examples must be conditions (B, K), got {tuple(labels.shape)}.")
    values = labels.detach().cpu().double()
    return (values > 0.5).long().masked_fill(~((values >= 0) & (values <= 1)), LEFT_OUT)
