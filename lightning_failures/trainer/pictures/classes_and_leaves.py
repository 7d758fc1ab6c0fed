"""Pictures of the worst classes and of the leaves of their trees, and thumbnails of the examples to browse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.budget import Deadline
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.text import tag_part
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import ClassReport, FeatureReport
from lightning_failures.report.drawing import card_pictures, finding_pictures
from lightning_failures.report.gallery import Gallery, Picture, Thumbnails, class_picture, leaf_picture
from lightning_failures.report.images import fit_square, square_side
from lightning_failures.report.projection import project
from lightning_failures.trainer.example_reader import READ_AT_ONCE
from lightning_failures.trainer.pictures.features import feature_pictures
from lightning_failures.trainer.pictures.sources import DisplayedTree, PictureInputs, displayed_trees, example_outcomes

LEAF_IMAGES = 8

THUMBNAIL = 48
"""Side of a thumbnail, in pixels; that of small images is theirs."""

BROWSED = 1000
"""Number of examples in the table of the HTML report and in TensorBoard's projector."""

MAX_BROWSED_FAILURES = 0.6
"""Largest share of failures among the browsed examples, if there are enough successes."""

MIN_BROWSING_SECONDS = 5.0
"""Time for reading the browsed examples, however short an epoch is."""

_LEAF_SALT = 0x1EAF

Fetch = Callable[[Sequence[int]], Sequence[Tensor]]
"""Returns the images (n, C, H, W) in [0, 1] of n ids."""


def browsed_ids(
    table: ExampleTable | None, *, seed: int, limit: int = BROWSED, among: Sequence[int] | None = None
) -> Tensor:
    """Return the ids of the examples to browse, (n,) int64, ascending, chosen by their hash.

    Failures have precedence, but fill at most ``MAX_BROWSED_FAILURES`` of the places if there are enough successes.
    ``among`` are the ids that have an image; None: all.
    """
    if table is None:
        return torch.empty(0, dtype=torch.int64)
    ids, position = np.unique(table.ids.numpy(), return_inverse=True)
    failed = np.zeros(len(ids), dtype=bool)
    failed[position[table.failed.numpy()]] = True
    order = np.argsort(stable_hash(ids, seed), kind="stable")
    if among is not None:
        order = order[np.isin(ids[order], among)]
    failures, successes = order[failed[order]], order[~failed[order]]
    n_failures = min(len(failures), max(int(MAX_BROWSED_FAILURES * limit), limit - len(successes)))
    chosen = np.concatenate([failures[:n_failures], successes[: limit - n_failures]])
    return torch.from_numpy(ids[chosen]).sort().values


def draw_gallery(
    result: AnalysisResult, grades: Grades, inputs: PictureInputs, *, worst_k: int
) -> tuple[Gallery, tuple[FeatureReport, ...]]:
    """Draw all pictures of an analysis and return them with the features that they show.

    The pictures are the same at every call if the dataset's transforms are deterministic. Feature attacks take the most
    time: they come last and stop at the deadline.
    """
    has_features = inputs.robust is not None and inputs.features is not None
    shown = displayed_trees(result, worst_k) if has_features else []
    findings = finding_pictures(result.report, result.table, inputs.images) if worst_k else []
    classes = class_pictures(result, grades, inputs.images, worst_k=worst_k)
    leaves = leaf_pictures(shown, grades, inputs.images, inputs.names.names)
    cards = _cards(result, classes, inputs) if worst_k else []
    thumbnails = draw_thumbnails(inputs)
    features, of_features = feature_pictures(shown, result, grades, inputs)
    report = result.report
    pictures = (*findings, *classes, *of_features, *leaves, *cards)
    gallery = Gallery(pictures, thumbnails, report.epoch, report.global_step)
    return gallery, features


def _cards(result: AnalysisResult, classes: Sequence[Picture], inputs: PictureInputs) -> list[Picture]:
    """Draw random failures of every class that the page shows, unless time is up."""
    if inputs.deadline is not None and inputs.deadline.passed:
        return []
    drawn = {picture.tag for picture in classes}
    names = [entry.name for entry in result.report.classes if f"classes/{tag_part(entry.name)}" in drawn]
    return card_pictures(result.report, result.table, inputs.images, drawn=names)


def draw_thumbnails(inputs: PictureInputs) -> Thumbnails | None:
    """Read the examples to browse, a batch at a time, until the deadline but for some seconds at least."""
    squares: list[Tensor] = []
    minimum = Deadline.after(MIN_BROWSING_SECONDS)
    for ids in torch.split(inputs.browsed, READ_AT_ONCE):
        out_of_time = inputs.deadline is not None and inputs.deadline.passed and minimum.passed
        if not len(ids) or out_of_time:
            break
        images = inputs.images(ids.tolist())
        side = squares[0].shape[-1] if squares else square_side(images, THUMBNAIL)
        squares += [fit_square(image, side) for image in images]
    if not squares:
        return None
    ids, embeddings = inputs.browsed[: len(squares)], inputs.embeddings
    if embeddings is None:
        return Thumbnails(ids, torch.stack(squares))
    known = embeddings.contains(ids)
    values = torch.full((len(ids), embeddings.values.shape[1]), float("nan"))
    values[known] = embeddings.select(ids[known]).float()
    if not known.any():
        return Thumbnails(ids, torch.stack(squares))
    return Thumbnails(ids, torch.stack(squares), values, project(values))


def class_pictures(result: AnalysisResult, grades: Grades, fetch: Fetch, *, worst_k: int) -> list[Picture]:
    """Draw the hardest, easiest and least confident images of the ``worst_k`` worst classes.

    Classes with a pattern come first.

    Args:
        result: The analysis with its fitted directions.
        grades: Its grades.
        fetch: Returns images by id.
        worst_k: Number of classes.
    """
    graded = [entry for entry in result.report.classes if entry.accuracy is not None]
    worst = sorted(graded, key=lambda entry: entry.rank)[:worst_k]
    return [_class_picture(result, entry, grades, fetch) for entry in worst if entry.hardest_ids]


def leaf_pictures(shown: Sequence[DisplayedTree], grades: Grades, fetch: Fetch, names: dict[int, str]) -> list[Picture]:
    """Draw failures and successes that satisfy the rule of each displayed leaf, chosen by the hash of their ids.

    If all examples of a leaf fail, the successes come from the rest of the group.
    """
    pictures = []
    for tree in shown:
        outcomes = example_outcomes(grades, tree.group, tree.members)
        for index in tree.leaves:
            ids = _shuffled(tree.tree.leaves[index].ids)
            failures = [i for i in ids if outcomes[i].failed][:LEAF_IMAGES]
            in_leaf = [i for i in ids if not outcomes[i].failed]
            successes = in_leaf or [i for i in _shuffled(tree.members) if not outcomes[i].failed]
            successes = successes[:LEAF_IMAGES]
            picture = leaf_picture(
                tree.group,
                index,
                fetch(failures) if failures else (),
                fetch(successes) if successes else (),
                failure_texts=[outcomes[i].text for i in failures],
                failure_ids=failures,
                success_ids=successes,
                elsewhere=bool(successes) and not in_leaf,
                names=names,
            )
            pictures.append(picture)
    return pictures


def _shuffled(ids: Tensor) -> list[int]:
    """Return the ids in a pseudo-random order that is the same at every analysis."""
    hashes = stable_hash(ids.numpy(), _LEAF_SALT)
    return [int(i) for i in ids.numpy()[np.argsort(hashes, kind="stable")]]


def _class_picture(result: AnalysisResult, entry: ClassReport, grades: Grades, fetch: Fetch) -> Picture:
    assert result.directions is not None
    rows = grades.labels == grades.class_names.index(entry.name)
    ids = grades.ids[rows].tolist()
    decision_values = dict(zip(ids, result.directions.out_of_fold[rows].tolist(), strict=True))
    outcomes = dict(zip(ids, _outcomes(grades, rows), strict=True))

    def texts(ids: Sequence[int]) -> list[str]:
        return [f"{decision_values[i]:+.2f}\n{outcomes[i]}" for i in ids]

    least = entry.least_confident_ids
    confidence = {} if grades.confidence is None else dict(zip(ids, grades.confidence[rows].tolist(), strict=True))
    return class_picture(
        entry,
        fetch(entry.hardest_ids),
        fetch(entry.easiest_ids),
        fetch(least) if least else (),
        hardest_texts=texts(entry.hardest_ids),
        easiest_texts=texts(entry.easiest_ids),
        least_confident_texts=[f"{confidence[i]:.2f}\n{outcomes[i]}" for i in least],
    )


def _outcomes(grades: Grades, rows: Tensor) -> list[str]:
    """Return what the model made of each row: the predicted class, or whether it is right if there is none."""
    if grades.predictions is None:
        return ["right" if right else "wrong" for right in grades.correct[rows].tolist()]
    return [f"-> {grades.class_names[prediction]}" for prediction in grades.predictions[rows].tolist()]
