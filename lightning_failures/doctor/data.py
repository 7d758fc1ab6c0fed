"""Batches, example ids and processes: how the callback reads the validation set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DistributedSampler

from lightning_failures.analysis.metrics import GradesMetric
from lightning_failures.data.grading import IGNORE_INDEX
from lightning_failures.doctor.dry_run import CheckContext, LoaderNotes, read_batches
from lightning_failures.doctor.findings import Finding, ok, problem, skipped, warning
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.dataset_attributes import dataset_attribute
from lightning_failures.trainer.grading_notes import grading_notes

MIN_CLASS_SIZE = 20
"""Fewest examples of a class with a direction, which needs 10 failures and 10 successes."""


def check_batches(context: CheckContext) -> Iterator[Finding]:
    """Validate two batches of each loader; report how images, logits, labels and class names are found."""
    try:
        read_batches(context)
    except Exception as error:
        yield problem(
            f"A validation of the first batches without FailureModes fails with {type(error).__name__}: {error}",
            "For the traceback, run lightning-failures validate with the same options.",
        )
        return
    for index, notes in enumerate(context.notes):
        where = f"loader {index}: " if len(context.notes) > 1 else ""
        if "batches" in notes.errors:
            yield problem(f"{where}{notes.errors['batches']}")
            continue
        # what was found in the first batch
        record, grader = notes.record, notes.grader
        if record is None or "examples" in notes.errors:
            yield skipped(f"{where}{'no batch' if record is None else 'not graded: see example ids'}")
            continue
        assert grader is not None
        names = grader.class_names
        origin = (
            "class_names" if context.callback.class_names else "dataset.classes" if grader.has_names else "no names"
        )
        images = "no images" if record.images is None else f"images {_describe(record.images)}"
        labels = "no labels" if record.labels is None else f"labels {_describe(record.labels)}"
        task = "verdict" if record.has_verdict else grader.task
        logits = "logits" if record.has_verdict else f"{grader.columns} logits an example,"
        yield ok(
            f"{where}{images}, {labels}; {logits} {notes.logits_by}; {task}, {len(names)} classes ({origin})",
            classes=len(names),
            task=task,
        )
        # what is missing, and what it costs
        if record.images is None:
            yield warning(f"{where}Batches have no images, so examples are only graded.", "Pass read_batch.")
        if not grader.has_names:
            yield warning(f"{where}Classes have no names, so there are no captions.", "Pass class_names.")
        for doubt in grading_notes(grader, grader.grades(), {}).doubts:
            yield warning(where + doubt)
        yield from _labels(notes, where)


def _describe(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))}) {str(tensor.dtype).removeprefix('torch.')}"


def _labels(notes: LoaderNotes, where: str) -> Iterator[Finding]:
    """Check all labels, if the dataset has them without reading images."""
    grader, labels = notes.grader, _all_labels(notes.dataset)
    if labels is None or grader is None or grader.task != "multiclass":
        return
    classes = len(grader.class_names)
    if unlabelled := int((labels == IGNORE_INDEX).sum()):
        yield ok(f"{where}{unlabelled:,} of {len(labels):,} examples have no label ({IGNORE_INDEX}) and are skipped")
    labelled = labels != IGNORE_INDEX
    outside = np.flatnonzero(labelled & ((labels < 0) | (labels >= classes)))
    if len(outside):
        yield problem(
            f"{where}{len(outside):,} of {len(labels):,} labels are not in 0 ... {classes - 1}: example {outside[0]}"
            f" has {labels[outside[0]]}. Such examples are left out.",
            "Remove these examples from the validation set.",
        )
        return
    small = int((np.bincount(labels[labelled], minlength=classes) < MIN_CLASS_SIZE).sum())
    if small:
        message = (
            f"{where}{small} of {classes} classes have fewer than {MIN_CLASS_SIZE} examples. They are graded, but have"
            " no direction, which needs 10 failures and 10 successes."
        )
        yield warning(message, "Use more validation images.") if small > classes / 2 else ok(message)


def _all_labels(dataset: Any) -> NDArray[np.int64] | None:
    for name in ("targets", "labels"):
        values = dataset_attribute(dataset, name)
        if isinstance(values, list | tuple | np.ndarray | Tensor):
            array = np.asarray(values)
            if array.dtype.kind in "iu" and array.shape == (len(dataset),):
                return array.astype(np.int64)
    return None


def check_examples(context: CheckContext) -> Iterator[Finding]:
    """Check that examples have unique ids; report groups and metadata."""
    for index, notes in enumerate(context.notes):
        where = f"loader {index}: " if len(context.notes) > 1 else ""
        if error := notes.errors.get("examples"):
            yield problem(f"{where}{error}")
            continue
        if notes.grader is None or notes.errors:
            yield skipped(f"{where}batches could not be read")
            continue
        try:
            grades = notes.grader.grades()
        except ConfigurationError as error:
            yield problem(f"{where}{error}")
            continue
        source = "indices of the dataset" if notes.grader.indexed else "from read_batch (no pictures)"
        groups = "no groups" if grades.groups is None else f"groups from {context.callback.groups_from!r}"
        metadata = notes.grader.metadata(grades)
        more = f", metadata {', '.join(metadata)}" if metadata else ""
        ids = len(torch.unique(grades.ids))
        names = f"{type(notes.loader).__name__} over {type(notes.dataset).__name__}"
        message = f"{where}{names}: ids are {source}; {groups}{more}"
        if ids != notes.seen:
            yield problem(
                f"{message}. {notes.seen} examples have only {ids} ids; examples that share an id count once.",
                "Return a unique id for each example from read_batch.",
            )
        else:
            yield ok(message)
    if not context.notes:
        yield skipped("no batches were read")


def check_processes(context: CheckContext) -> Iterator[Finding]:
    """Check that each example is graded once, although distributed samplers repeat some."""
    world = context.trainer.world_size
    notes = context.first
    size = 0 if notes is None else notes.size
    if not size:
        yield skipped("no batches were read" if notes is None else "the validation set has no length")
        return
    # also on other numbers of processes than this Trainer's, which is often configured for one machine
    counts = sorted({2, 3, 4} | ({world} if world > 1 else set()))
    repeated = {count: -size % count for count in counts}
    wrong = [count for count in counts if not graded_once(size, count)]
    if wrong:
        yield problem(f"With {wrong[0]} processes, some of {size:,} examples would be lost or counted twice.")
        return
    if world == 1:
        yield ok(f"one process; with 2, 3 or 4, each of {size:,} examples would be graded once", world_size=1)
    else:
        repeats = f"the sampler repeats {repeated[world] or 'none'}"
        nodes = f"{context.trainer.num_nodes} node(s)"
        yield ok(f"{world} processes ({nodes}): {repeats} of {size:,} examples; each is graded once", world_size=world)
    if world > 1 and not context.trainer._accelerator_connector.use_distributed_sampler:
        yield warning(
            "use_distributed_sampler=False: unless your sampler distributes the examples, every process sees all.",
            "Each example is still graded once, but embedded by every process. Distribute the examples to save time.",
        )


def graded_once(size: int, processes: int) -> bool:
    """Return whether each of ``size`` examples counts once when distributed samplers split them over processes.

    >>> graded_once(10, 4)
    True
    """
    metric = GradesMetric()
    for rank in range(processes):
        sampler: Any = DistributedSampler(range(size), processes, rank, shuffle=False)  # type: ignore[arg-type]
        ids = torch.tensor(list(sampler), dtype=torch.int64)
        metric.update(ids, ids, ids, torch.zeros(len(ids)))
    return torch.equal(metric.compute()[0], torch.arange(size))
