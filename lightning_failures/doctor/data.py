"""Batches, images, ids and processes: what the callback would make of this validation set."""

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
from lightning_failures.trainer.index_recorder import dataset_attribute

FEWEST = 20  # 10 failures and 10 successes


def check_batches(case: CheckContext) -> Iterator[Finding]:
    """Two batches of each loader, by a real validation: how they are read, logits, labels, names of classes."""
    try:
        read_batches(case)
    except Exception as error:
        yield problem(
            f"A validation of the first batches, without FailureModes, ends in {type(error).__name__}: {error}",
            "Where: lightning-failures validate, with the same options.",
        )
        return
    for index, notes in enumerate(case.notes):
        where = f"loader {index}: " if len(case.notes) > 1 else ""
        if "batches" in notes.errors:
            yield problem(f"{where}{notes.errors['batches']}")
            continue
        record, grader = notes.record, notes.grader
        if record is None or "examples" in notes.errors:
            yield skipped(f"{where}{'no batch' if record is None else 'not graded: see examples'}")
            continue
        assert grader is not None
        assert record.labels is not None
        names = grader.class_names
        origin = "class_names" if case.modes.class_names else "dataset.classes" if grader.has_names else "no names"
        images = "no images" if record.images is None else f"images {_form(record.images)}"
        yield ok(
            f"{where}{images}, labels {_form(record.labels)}; {grader.columns} logits an example,"
            f" {notes.logits_by}; {grader.task}, {len(names)} classes ({origin})",
            classes=len(names),
            task=grader.task,
        )
        if record.images is None:
            yield warning(f"{where}Without images there are grades only.", "Give read_batch.")
        if not grader.has_names:
            yield warning(f"{where}Classes have no names, so there are no captions.", "Give class_names.")
        if grader.doubt:
            yield warning(where + grader.doubt)
        yield from _labels(notes, where)


def _form(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))}) {str(tensor.dtype).removeprefix('torch.')}"


def _labels(notes: LoaderNotes, where: str) -> Iterator[Finding]:
    """All labels, where the dataset tells them without reading images; the batches have shown the first."""
    grader, labels = notes.grader, _all_labels(notes.dataset)
    if labels is None or grader is None or grader.task != "multiclass":
        return
    classes = len(grader.class_names)
    if unlabelled := int((labels == IGNORE_INDEX).sum()):
        yield ok(f"{where}{unlabelled:,} of {len(labels):,} examples have no label ({IGNORE_INDEX}) and are left out")
    labelled = labels != IGNORE_INDEX
    outside = np.flatnonzero(labelled & ((labels < 0) | (labels >= classes)))
    if len(outside):
        yield problem(
            f"{where}{len(outside):,} of {len(labels):,} labels are not in 0 ... {classes - 1}: example {outside[0]}"
            f" has {labels[outside[0]]}. A batch with one of them cannot be graded, and the analysis is skipped.",
            "Leave these examples out of the validation set.",
        )
        return
    small = int((np.bincount(labels[labelled], minlength=classes) < FEWEST).sum())
    if small:
        message = (
            f"{where}{small} of {classes} classes have fewer than {FEWEST} examples. They are graded, but have no"
            " direction: that needs 10 failures and 10 successes."
        )
        yield warning(message, "More validation images.") if small > classes / 2 else ok(message)


def _all_labels(dataset: Any) -> NDArray[np.int64] | None:
    for name in ("targets", "labels"):
        values = dataset_attribute(dataset, name)
        if isinstance(values, list | tuple | np.ndarray | Tensor):
            array = np.asarray(values)
            if array.dtype.kind in "iu" and array.shape == (len(dataset),):
                return array.astype(np.int64)
    return None


def check_examples(case: CheckContext) -> Iterator[Finding]:
    """Ids: does the callback know which example it sees, and which belong together?"""
    for index, notes in enumerate(case.notes):
        where = f"loader {index}: " if len(case.notes) > 1 else ""
        if error := notes.errors.get("examples"):
            yield problem(f"{where}{error}")
            continue
        if notes.grader is None or notes.errors:
            yield skipped(f"{where}batches could not be read")
            continue
        grades = notes.grader.grades()
        told = "indices of the dataset" if notes.grader.indexed else "given by read_batch (no pictures)"
        groups = "no groups" if grades.groups is None else f"groups from {case.modes.groups_from!r}"
        metadata = notes.grader.metadata(grades)
        more = f", metadata {', '.join(metadata)}" if metadata else ""
        ids = len(torch.unique(grades.ids))
        message = (
            f"{where}{type(notes.loader).__name__} over {type(notes.dataset).__name__}: ids are {told}; {groups}{more}"
        )
        if ids != notes.seen:
            yield problem(
                f"{message}. {notes.seen} examples had only {ids} ids: those that share one would count once.",
                "Ids of read_batch must be unique for each example.",
            )
        else:
            yield ok(message)
    if not case.notes:
        yield skipped("no batches were read")


def check_processes(case: CheckContext) -> Iterator[Finding]:
    """Distributed samplers repeat examples; the grades must not."""
    world = case.trainer.world_size
    notes = case.first
    size = 0 if notes is None else notes.size
    if not size:
        yield skipped("no batches were read" if notes is None else "the validation set has no length")
        return
    counts = sorted({2, 3, 4} | ({world} if world > 1 else set()))
    repeated = {count: -size % count for count in counts}
    wrong = [count for count in counts if not graded_once(size, count)]
    if wrong:
        yield problem(f"On {wrong[0]} processes some of {size:,} examples would be lost or counted twice.")
        return
    if world == 1:
        yield ok(f"one process; on 2, 3 or 4 each of {size:,} examples would be graded once", world_size=1)
    else:
        times = f"the sampler repeats {repeated[world]}" if repeated[world] else "the sampler repeats none"
        yield ok(
            f"{world} processes ({case.trainer.num_nodes} node(s)): of {size:,} examples {times}; each is graded once",
            world_size=world,
        )
    if world > 1 and not case.trainer._accelerator_connector.use_distributed_sampler:
        yield warning(
            "use_distributed_sampler=False: unless your sampler shares the examples out, every process sees all.",
            "Each is graded once all the same, but embedded by every process.",
        )


def graded_once(size: int, processes: int) -> bool:
    """Whether each of ``size`` examples counts once when the samplers of so many processes have dealt them out.

    >>> graded_once(10, 4)
    True
    """
    metric = GradesMetric()
    for rank in range(processes):
        sampler: Any = DistributedSampler(range(size), processes, rank, shuffle=False)  # type: ignore[arg-type]
        ids = torch.tensor(list(sampler), dtype=torch.int64)
        metric.update(ids, ids, ids, torch.zeros(len(ids)))
    return torch.equal(metric.compute()[0], torch.arange(size))
