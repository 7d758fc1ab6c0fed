"""The inputs of the pictures of one analysis, and which trees are displayed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.captions.scoring import most_distinctive_caption
from lightning_failures.core.arrays import finite_rows
from lightning_failures.core.budget import Deadline
from lightning_failures.core.text import clean
from lightning_failures.core.threads import one_thread
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import ALL_GROUPINGS, grouping_named
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.directions import FailureDirections
from lightning_failures.encoders import FeatureEncoder
from lightning_failures.encoders.cache.store import EmbeddingStore
from lightning_failures.report.feature_names import FeatureNames
from lightning_failures.trainer.changed_images import ChangedImages
from lightning_failures.trainer.pictures.live_features import LiveFeatures
from lightning_failures.trees.fit import FailureTree


@dataclass(frozen=True)
class EmbeddingTable:
    """Embeddings of some examples, by id.

    Attributes:
        ids: (U,) int64, ascending and distinct.
        values: (U, D).
    """

    ids: Tensor
    values: Tensor

    @classmethod
    def of(cls, ids: Tensor, values: Tensor | None) -> EmbeddingTable | None:
        """Return the table of those ids (U,) whose values (U, D) are finite; None without values."""
        if values is None:
            return None
        known = finite_rows(values)
        return cls(ids, values) if known.all() else cls(ids[known], values[known])

    def select(self, ids: Tensor) -> Tensor:
        """Return the embeddings (n, D) of ids (n,) that are all in the table."""
        return self.values[torch.searchsorted(self.ids, ids)]

    def contains(self, ids: Tensor) -> Tensor:
        """Return which of the ids (n,) are in the table: (n,) bool."""
        return torch.isin(ids, self.ids)


@dataclass(frozen=True)
class PictureInputs:
    """The inputs of the pictures of one analysis.

    Attributes:
        images: Returns the images (C, H, W) in [0, 1] of n ids, whose sizes may differ.
        robust: The encoder of the features, if it gives heat maps.
        features: Robust features of all members of the displayed groups, or None.
        embeddings: Embeddings by the directions' encoder of those members and of the browsed examples, as far as they
            were computed.
        captions: Returns the candidate captions of a class, by its index. None: no captions.
        browsed: (n,) ids of the examples in the table of the report.
        store: Store of the features; heat maps and attacks are stored with them. None: nothing is stored.
        deadline: When the pictures should be finished; attacks and the remaining browsed examples are skipped after it.
            None: attacks have a generous limit of their own.
        names: Names that people gave to features.
        model: Asks the model about changed images, for counterfactual checks; None: there are none.
        attacks: Whether features are attacked.
        live: Returns the penultimate features of the live model, whose weights are those of the analysis; None: there
            are none.
    """

    images: Callable[[Sequence[int]], Sequence[Tensor]]
    robust: FeatureEncoder | None
    features: EmbeddingTable | None
    embeddings: EmbeddingTable | None
    captions: Callable[[int], ClassCaptions | None] | None
    browsed: Tensor
    store: EmbeddingStore | None = None
    deadline: Deadline | None = None
    names: FeatureNames = field(default_factory=FeatureNames)
    model: ChangedImages | None = None
    attacks: bool = True
    live: Callable[[], LiveFeatures] | None = None


def of_one_size(images: Sequence[Tensor]) -> Tensor:
    """Return images (C, H, W) in [0, 1] as one batch, resized to the first of them if they differ in size."""
    channels, size = max(len(image) for image in images), images[0].shape[1:]
    same = [
        image if image.shape[1:] == size else F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        for image in images
    ]
    return torch.stack([image.expand(channels, -1, -1) for image in same])


def kept_images(kept: Mapping[int, Tensor], ids: Sequence[int]) -> list[Tensor]:
    """Return images (C, H, W) float32 in [0, 1] that were kept while they passed, (C, h, w) uint8 by id."""
    return [kept[i].float() / 255 for i in ids]


def with_examples_among(result: AnalysisResult, grades: Grades, kept: Collection[int]) -> AnalysisResult:
    """Return a result whose findings, classes and table have examples among ``kept`` only.

    Args:
        result: The analysis.
        grades: Its N rows.
        kept: Ids that have an image.
    """
    has_image = np.isin(grades.ids.numpy(), list(kept))
    values = None if result.directions is None else result.directions.out_of_fold.numpy()
    entries = []
    for entry in result.report.classes:
        rows = np.flatnonzero(has_image & (grades.labels.numpy() == grades.class_names.index(entry.name)))
        changed = entry
        if entry.hardest_ids and values is not None:
            known = rows[np.isfinite(values[rows])]
            ordered = grades.ids[known[np.argsort(values[known], kind="stable")]].tolist()
            changed = replace(
                changed,
                hardest_ids=tuple(ordered[: len(entry.hardest_ids)]),
                easiest_ids=tuple(ordered[::-1][: len(entry.easiest_ids)]),
            )
        if grades.confidence is not None:
            least = rows[np.argsort(grades.confidence.numpy()[rows], kind="stable")][: len(entry.least_confident_ids)]
            changed = replace(changed, least_confident_ids=tuple(grades.ids[least].tolist()))
        entries.append(changed)
    findings = [
        replace(
            found,
            failing_ids=tuple(i for i in found.failing_ids if i in kept),
            right_ids=tuple(i for i in found.right_ids if i in kept),
        )
        for found in result.report.findings
    ]
    table = (
        result.table
        if result.table is None
        else result.table.where(torch.from_numpy(np.isin(result.table.ids, list(kept))))
    )
    return replace(result, table=table).with_report(classes=tuple(entries), findings=tuple(findings))


@dataclass(frozen=True)
class DisplayedTree:
    """A tree whose rules are displayed.

    Attributes:
        group: Report of its group.
        tree: The tree.
        members: (n,) int64, the ids of the group, ascending.
    """

    group: GroupReport
    tree: FailureTree
    members: Tensor

    @property
    def name(self) -> str:
        """Name of the group, as in ``FeatureReport.groups``."""
        return f"{self.group.grouping}/{self.group.class_name}"

    @property
    def best(self) -> int:
        """Index of the leaf that it pays most to fix."""
        return min(range(len(self.group.leaves)), key=lambda i: self.group.leaves[i].rank)

    @property
    def path(self) -> list[int]:
        """Features on the path to the best leaf, from the root down."""
        return [split.feature for split in self.tree.leaves[self.best].splits]

    @property
    def leaves(self) -> list[int]:
        """Indices of the displayed leaves: the best one and all that are valid on held-out examples."""
        return [i for i, leaf in enumerate(self.group.leaves) if leaf.shown_as_valid or i == self.best]


def displayed_trees(result: AnalysisResult, worst_k: int) -> list[DisplayedTree]:
    """Return the trees of ``worst_k`` groups with a pattern, those first with a leaf that it pays most to fix.

    Groupings take turns, label groups first.
    """

    def ranked(grouping: str) -> list[GroupReport]:
        found = [
            group
            for group in result.report.groups
            if group.grouping == grouping and group.pattern and len(group.leaves) > 1
        ]
        return sorted(found, key=lambda group: min(leaf.rank for leaf in group.leaves))

    turns = zip_longest(*(ranked(grouping.name) for grouping in ALL_GROUPINGS))
    groups = [group for turn in turns for group in turn if group is not None][: max(worst_k, 0)]
    trees = [result.trees[group.grouping, group.class_name] for group in groups]
    return [
        DisplayedTree(group, tree, torch.unique(torch.cat([leaf.ids for leaf in tree.leaves])))
        for group, tree in zip(groups, trees, strict=True)
    ]


def displayed_members(result: AnalysisResult, worst_k: int) -> Tensor:
    """Return the ids (U,) int64, ascending, of all members of the displayed groups."""
    members = [shown.members for shown in displayed_trees(result, worst_k)]
    all_members = torch.cat([torch.empty(0, dtype=torch.int64), *members])
    return torch.from_numpy(np.unique(all_members.numpy()))


@dataclass(frozen=True)
class ExampleOutcome:
    """Whether an example failed, and how.

    Attributes:
        failed: Whether the prediction is wrong.
        text: In a label group "-> dog", the prediction; in a prediction group "label: dog"; empty for a success, or if
            the class is not known.
    """

    failed: bool
    text: str


def example_outcomes(grades: Grades, group: GroupReport, members: Tensor | None = None) -> dict[int, ExampleOutcome]:
    """Return the outcome of each member of a group, by id.

    Args:
        grades: N rows.
        group: The group.
        members: Ids of its examples, for a grouping that does not follow from the grades, such as by clusters. Each of
            them has one row.
    """
    grouping = grouping_named(group.grouping)
    assert grouping is not None
    assignment = grouping.assign(grades)
    if members is not None and group.class_name not in assignment.names:
        rows = np.isin(grades.ids.numpy(), members.numpy())
    else:
        rows = assignment.rows_of(group.class_name)
    ids, failed, shown = grades.ids[rows].tolist(), grades.failed[rows].tolist(), grouping.shown_class(grades)
    if shown is None:
        return {example: ExampleOutcome(wrong, "") for example, wrong in zip(ids, failed, strict=True)}
    outcomes = {}
    for example, wrong, shown_class in zip(ids, failed, shown[rows].tolist(), strict=True):
        text = f"{grouping.prefix} {clean(grades.class_names[shown_class], 40)}" if wrong else ""
        outcomes[example] = ExampleOutcome(wrong, text)
    return outcomes


def distinctive_caption(
    inputs: PictureInputs,
    directions: FailureDirections | None,
    grades: Grades,
    class_name: str,
    members: Tensor,
    top_ids: Tensor,
) -> dict[str, Any]:
    """Return the caption that best separates some examples of a class from its others, as fields of a record.

    Args:
        inputs: The inputs of the pictures.
        directions: The directions of the analysis; None if there are none.
        grades: The grades of the analysis.
        class_name: The class.
        members: (n,) int64, ids of the examples of the class.
        top_ids: (m,) int64, ids of those that are to be described.

    Returns:
        ``caption``, ``caption_score`` and ``caption_margin``; nothing without captions or directions.
    """
    embeddings = inputs.embeddings
    if embeddings is None or directions is None or inputs.captions is None:
        return {}
    try:
        candidates = inputs.captions(grades.class_names.index(class_name))
    except Exception:  # the notes of the report say why a class has no captions
        return {}
    members = members[embeddings.contains(members)]
    if candidates is None or not len(members):
        return {}
    with one_thread():
        best = most_distinctive_caption(
            directions,
            embeddings.select(members),
            torch.isin(members, top_ids),
            candidates.embeddings,
            candidates.reference,
        )
    if best is None:
        return {}
    return {"caption": candidates.texts[best.index], "caption_score": best.score, "caption_margin": best.margin}
