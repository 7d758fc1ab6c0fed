"""Penultimate features of a fixed sample of the training set, for fits on the model's own features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lightning_failures.analysis.method import TrainingFeatures
from lightning_failures.core.budget import Deadline
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.rng import isolated_rng
from lightning_failures.core.types import IntArray
from lightning_failures.encoders.cache.store import EmbeddingStore, content_keys
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.base import LEFT_OUT
from lightning_failures.steering.last_layer import features_of_batches, gather_features, store_of_model
from lightning_failures.steering.loader_patch import original_dataset
from lightning_failures.steering.training_view import FLUSH_EVERY, ExamplesView, training_view
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.dataset_attributes import class_list_problem
from lightning_failures.trainer.example_reader import ReadExamples, training_loaders
from lightning_failures.trainer.feature_store import FeatureStore, StoredFeatures
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.reading_ways import VIEW, class_labels, condition_labels

LIMIT = 50_000
"""Largest number of training images."""


def sample_features(
    trainer: Trainer,
    reader: BatchReader,
    features: FeatureStore,
    ranks: Communicator,
    deadline: Deadline | None,
    *,
    head: str | None,
    evaluated: Any,
    classes: Callable[[], int],
    conditions: Callable[[], int] = lambda: 1,
    seed: int,
    limit: int = LIMIT,
) -> TrainingFeatures:
    """Return features and labels of training images on the first process, each rank computing a share. Collective.

    The images are the first by a hash of their index; a deadline cuts the sample short. An error is no error of the
    analysis: it is returned as the problem.

    Args:
        trainer: The Trainer.
        reader: Reads batches.
        features: Stores the features on disk.
        ranks: The processes.
        deadline: Time after which no further batch is read, but for the first one; None: no limit.
        head: Name of the submodule whose input are the features; None: it is found.
        evaluated: The evaluated dataset, whose classes must be those of the training set.
        classes: Returns the number of classes.
        conditions: Returns the number of conditions of a multilabel task, whose labels are (M, K); 1 for other tasks.
        seed: Seed of the sample and of random transforms.
        limit: Largest number of images.
    """
    try:
        with ranks.synchronized():
            return _read(
                trainer,
                reader,
                features,
                ranks,
                deadline,
                head=head,
                evaluated=evaluated,
                classes=classes(),
                conditions=conditions(),
                seed=seed,
                limit=limit,
            )
    except Exception as error:  # whatever it is, the evaluated examples are still there
        what = str(error) if isinstance(error, ConfigurationError | DataError) else f"{type(error).__name__}: {error}"
        return TrainingFeatures(None, np.empty(0, dtype=np.int64), 0, problem=what[:500])


def _read(
    trainer: Trainer,
    reader: BatchReader,
    features: FeatureStore,
    ranks: Communicator,
    deadline: Deadline | None,
    *,
    head: str | None,
    evaluated: Any,
    classes: int,
    conditions: int,
    seed: int,
    limit: int,
) -> TrainingFeatures:
    view = ranks.run_all(lambda: _open_view(trainer, reader, evaluated, seed, conditions))
    total = len(view)
    sample = np.argsort(stable_hash(np.arange(total), seed), kind="stable")[:limit]

    def compute() -> tuple[EmbeddingStore, IntArray, IntArray, Tensor, int]:
        mine = sample[ranks.rank :: ranks.world_size].tolist()
        logits = conditions if conditions > 1 else classes
        return _computed(trainer, view, features, mine, deadline, head=head, classes=logits, conditions=conditions)

    store, own_ids, own_labels, own_keys, own_dim = ranks.run_all(compute)
    found = ranks.gather_objects((own_ids, own_labels, own_keys, own_dim))
    ids = np.concatenate([one[0] for one in found])
    labels = np.concatenate([one[1] for one in found])
    keys = torch.cat([one[2] for one in found])
    order = np.argsort(ids, kind="stable")
    columns = labels if labels.ndim == 2 else labels[:, None]  # a condition each
    in_range = np.any((columns >= 0) & (columns < classes), axis=1)
    usable = order[in_range[order]]
    labels, keys = labels[usable], keys[torch.from_numpy(usable)]
    if ranks.world_size > 1:
        of_rank = np.concatenate([np.full(len(one[0]), rank) for rank, one in enumerate(found)])[usable]
        gather_features(ranks, store, keys, of_rank, max(one[3] for one in found))
    notes = _notes(view, len(ids), min(limit, total))
    if not ranks.is_first:
        return TrainingFeatures(None, labels, total)
    known = ~store.missing(keys)
    if not known.any():
        raise DataError("no training image has a class and finite penultimate features.")
    return TrainingFeatures(StoredFeatures(store, keys[known]), labels[known.numpy()], total, notes=notes)


def _open_view(trainer: Trainer, reader: BatchReader, evaluated: Any, seed: int, conditions: int) -> ExamplesView:
    """Return the view of the training set.

    Raises:
        ConfigurationError: There is no training set that can be read by index, or it has other classes.
    """
    with isolated_rng():  # the user's code may draw random numbers
        loaders = training_loaders(trainer)
        flat: Sequence[Any] = [] if loaders is None else CombinedLoader(loaders, "max_size").flattened
        if len(flat) != 1:
            raise ConfigurationError(
                "the Trainer has no training loader here. Give it a datamodule, or a module with train_dataloader."
                if not flat
                else f"there are {len(flat)} training loaders."
            )
        read_labels = condition_labels if conditions > 1 else class_labels
        view = training_view(trainer, flat[0], reader, seed=seed, read_labels=read_labels)
        if (problem := class_list_problem(evaluated, {"training set": original_dataset(flat[0])})) is not None:
            raise ConfigurationError(problem)
        return view


def _computed(
    trainer: Trainer,
    view: ExamplesView,
    features: FeatureStore,
    ids: Sequence[int],
    deadline: Deadline | None,
    *,
    head: str | None,
    classes: int,
    conditions: int,
) -> tuple[EmbeddingStore, IntArray, IntArray, Tensor, int]:
    """Compute the features of some examples, unless they are stored.

    Returns:
        The store; ids (n,), labels, (n,) or (n, conditions), and cache keys (n, 2) of the examples that were read; and
        the width of the features, 0 if all were stored.
    """
    space = view.reader.reader.space(view.dataset)
    store = store_of_model(trainer, features, head or "")
    of_each = (conditions,) if conditions > 1 else ()
    read_ids, labels, keys = [], [torch.empty(0, *of_each, dtype=torch.int64)], [torch.empty(0, 2, dtype=torch.int64)]
    passed: list[Tensor] = []  # keys of the batches that go through the model, in order

    def lacking() -> Iterator[ReadExamples]:
        for part in view.model_batches(ids):
            images = view.reader.images_of(part.record)
            found = content_keys(images, salt=repr(space))
            read_ids.extend(part.ids)
            given = part.record.labels
            labels.append(torch.full((len(found), *of_each), LEFT_OUT) if given is None else given.long())
            keys.append(found)
            if bool(store.missing(found).any()):
                passed.append(found)
                yield part
            if deadline is not None and deadline.passed:
                return

    dim = unflushed = 0
    with features_of_batches(trainer, view.reader, lacking(), head, classes) as parts:
        for number, part in enumerate(parts):
            store.put(passed[number], part.features)
            dim, unflushed = part.features.shape[1], unflushed + len(part.features)
            if unflushed >= FLUSH_EVERY:
                store.flush()
                unflushed = 0
    store.flush()
    return store, np.array(read_ids, dtype=np.int64), torch.cat(labels).numpy(), torch.cat(keys), dim


def _notes(view: ExamplesView, n_read: int, wanted: int) -> tuple[str, ...]:
    notes = []
    if n_read < wanted:
        notes.append(
            f"The sparse decision layer is fitted to {n_read} training images: the time budget allows no more."
        )
    if view.looks_random:
        notes.append(
            "The transform of the training set looks random, so the sparse decision layer is fitted to one draw of it."
            f" Give the datamodule a {VIEW}: the same examples through the transform of validation."
        )
    return tuple(notes)
