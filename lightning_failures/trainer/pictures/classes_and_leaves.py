"""Which pictures an analysis asks for: extreme images of the worst classes, and what their rules mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.budget import Deadline
from lightning_failures.core.hashing import stable_hash
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import ClassReport, FeatureReport
from lightning_failures.report.gallery import Gallery, Picture, Thumbnails, class_picture, leaf_picture
from lightning_failures.report.images import fit_square
from lightning_failures.trainer.batch_reader import READ_AT_ONCE
from lightning_failures.trainer.pictures.features import feature_pictures
from lightning_failures.trainer.pictures.sources import (
    DisplayedTree,
    PictureInputs,
    outcomes,
    pictured_groups,
)

LEAF_IMAGES = 8
THUMBNAIL = 48  # px
BROWSED = 1000
"""How many examples the table of the HTML report and TensorBoard's projector show."""

FAILURES = 0.6
"""Largest share of failures among them."""

BROWSING = 5.0
"""Seconds for them, however short an epoch is."""

_LEAF_SALT = 0x1EAF


def browsed_ids(table: ExampleTable | None, *, seed: int, limit: int = BROWSED) -> Tensor:
    """The examples to look through, (n,) int64, ascending, by the hash of their ids.

    Failures are preferred, but at most ``FAILURES`` of the places are theirs where there are others.
    """
    if table is None:
        return torch.empty(0, dtype=torch.int64)
    ids, place = np.unique(table.ids.numpy(), return_inverse=True)
    failed = np.zeros(len(ids), dtype=bool)
    failed[place[table.failed.numpy()]] = True
    order = np.argsort(stable_hash(ids, seed), kind="stable")
    failures, others = order[failed[order]], order[~failed[order]]
    count = min(len(failures), max(int(FAILURES * limit), limit - len(others)))
    return torch.from_numpy(ids[np.concatenate([failures[:count], others[: limit - count]])]).sort().values


def draw_gallery(
    result: AnalysisResult, grades: Grades, sources: PictureInputs, *, worst_k: int
) -> tuple[Gallery, tuple[FeatureReport, ...]]:
    """Draw everything, and tell which features are shown. Random transforms apart, nothing random is in it.

    Attacks take the time: they come last, and stop at the deadline.
    """
    report = result.report
    pictures = class_pictures(result, grades, sources.images, worst_k=worst_k)
    shown = [] if sources.robust is None or sources.features is None else pictured_groups(result, worst_k)
    leaves = leaf_pictures(shown, grades, sources.images, sources.names.names)
    thumbnails = browse(sources)
    features, drawn = feature_pictures(shown, result, grades, sources)
    gallery = Gallery((*pictures, *drawn, *leaves), thumbnails, report.epoch, report.global_step)
    return gallery, features


def browse(sources: PictureInputs) -> Thumbnails | None:
    """Read the examples to look through, a batch at a time: for some seconds at least, then as far as time allows."""
    squares: list[Tensor] = []
    patience = Deadline.after(BROWSING)
    for some in torch.split(sources.browsed, READ_AT_ONCE):
        out_of_time = sources.deadline is not None and sources.deadline.passed and patience.passed
        if not len(some) or out_of_time:
            break
        squares += [fit_square(image, THUMBNAIL) for image in sources.images(some.tolist())]
    if not squares:
        return None
    ids, rows = sources.browsed[: len(squares)], sources.embeddings
    if rows is None:
        return Thumbnails(ids, torch.stack(squares))
    known = rows.known(ids)
    values = torch.full((len(ids), rows.values.shape[1]), float("nan"))
    values[known] = rows.of(ids[known]).float()
    return Thumbnails(ids, torch.stack(squares), values if known.any() else None)


def class_pictures(
    result: AnalysisResult, grades: Grades, fetch: Callable[[Sequence[int]], Tensor], *, worst_k: int
) -> list[Picture]:
    """Draw the hardest, easiest and least confident images of the ``worst_k`` classes by accuracy.

    Args:
        result: The analysis with its fitted directions.
        grades: Its grades.
        fetch: ids -> images (n, C, H, W) in [0, 1].
        worst_k: How many.
    """
    worst = sorted(
        (entry for entry in result.report.classes if entry.accuracy is not None),
        key=lambda c: (not c.pattern, c.accuracy),
    )
    return [_class_picture(result, entry, grades, fetch) for entry in worst[:worst_k] if entry.hardest_ids]


def leaf_pictures(
    shown: Sequence[DisplayedTree], grades: Grades, fetch: Callable[[Sequence[int]], Tensor], names: dict[int, str]
) -> list[Picture]:
    """Draw failures that follow each rule, chosen by the hash of their ids, and correct ones beside them.

    Where all that follow it fail, the correct ones are those of the rest of the group.
    """
    pictures = []
    for one in shown:
        outcome_of = outcomes(grades, one.group)
        for index in one.leaves:
            ids = _shuffled(one.tree.leaves[index].ids)
            failures = [i for i in ids if outcome_of[i].failed][:LEAF_IMAGES]
            inside = [i for i in ids if not outcome_of[i].failed]
            successes = (inside or [i for i in _shuffled(one.members) if not outcome_of[i].failed])[:LEAF_IMAGES]
            pictures.append(
                leaf_picture(
                    one.group,
                    index,
                    fetch(failures) if failures else (),
                    fetch(successes) if successes else (),
                    failure_texts=[outcome_of[i].text for i in failures],
                    failure_ids=failures,
                    success_ids=successes,
                    elsewhere=bool(successes) and not inside,
                    names=names,
                )
            )
    return pictures


def _shuffled(ids: Tensor) -> list[int]:
    """In an order that is the same at every analysis."""
    places = stable_hash(ids.numpy(), _LEAF_SALT)
    return [int(i) for i in ids.numpy()[np.argsort(places, kind="stable")]]


def _class_picture(
    result: AnalysisResult, entry: ClassReport, grades: Grades, fetch: Callable[[Sequence[int]], Tensor]
) -> Picture:
    assert result.directions is not None
    mine = grades.labels == grades.class_names.index(entry.name)
    ids = grades.ids[mine].tolist()
    scores = dict(zip(ids, result.directions.out_of_fold[mine].tolist(), strict=True))
    guesses = dict(zip(ids, grades.predictions[mine].tolist(), strict=True))
    confidence = dict(zip(ids, grades.confidence[mine].tolist(), strict=True))

    def texts(ids: Sequence[int]) -> list[str]:
        return [f"{scores[i]:+.2f}\n-> {grades.class_names[guesses[i]]}" for i in ids]

    least = entry.least_confident_ids
    return class_picture(
        entry,
        fetch(entry.hardest_ids),
        fetch(entry.easiest_ids),
        fetch(least) if least else (),
        hardest_texts=texts(entry.hardest_ids),
        easiest_texts=texts(entry.easiest_ids),
        least_confident_texts=[f"{confidence[i]:.2f}\n-> {grades.class_names[guesses[i]]}" for i in least],
    )
