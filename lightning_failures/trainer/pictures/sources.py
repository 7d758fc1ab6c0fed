"""What pictures are drawn from, and which groups they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.budget import Deadline
from lightning_failures.core.text import clean
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import GroupReport
from lightning_failures.encoders import FeatureEncoder
from lightning_failures.encoders.cache.store import EmbeddingStore
from lightning_failures.report.feature_names import FeatureNames
from lightning_failures.trees.fit import FailureTree


@dataclass(frozen=True)
class Rows:
    """Embeddings of some examples: ids (U,), ascending, and values (U, D)."""

    ids: Tensor
    values: Tensor

    def of(self, ids: Tensor) -> Tensor:
        """(n,) ids that are among them -> (n, D)."""
        return self.values[torch.searchsorted(self.ids, ids)]

    def known(self, ids: Tensor) -> Tensor:
        """Which of the ids (n,) are among them: (n,) bool."""
        return torch.isin(ids, self.ids)


@dataclass(frozen=True)
class PictureInputs:
    """What the pictures of one analysis are drawn from.

    Attributes:
        images: ids -> images (n, C, H, W) in [0, 1].
        robust: What made the features, if it has heat maps.
        features: Robust features of all members of the groups whose rules are shown, or None.
        embeddings: Of the directions' encoder: those of the same members and of what is browsed, as far as there are.
        captions: Class (index) -> its candidate captions; None: no captions.
        browsed: (n,) ids of the examples to look through.
        store: Of the features; heat maps and attacks are kept beside them. None: nothing is kept.
        deadline: When the pictures should be over: then attacks are left out, and the rest of what is browsed. None:
            attacks have time enough, if not for ever.
        names: What people call the features.
    """

    images: Callable[[Sequence[int]], Tensor]
    robust: FeatureEncoder | None
    features: Rows | None
    embeddings: Rows | None
    captions: Callable[[int], ClassCaptions | None] | None
    browsed: Tensor
    store: EmbeddingStore | None = None
    deadline: Deadline | None = None
    names: FeatureNames = field(default_factory=FeatureNames)


@dataclass(frozen=True)
class DisplayedTree:
    """A group whose rules are shown.

    Attributes:
        group: The group.
        tree: Its tree.
        members: (n,) int64, the ids of the group, ascending.
    """

    group: GroupReport
    tree: FailureTree
    members: Tensor

    @property
    def name(self) -> str:
        """As in ``FeatureReport.groups``."""
        return f"{self.group.grouping}/{self.group.class_name}"

    @property
    def best(self) -> int:
        """The number of its most important leaf."""
        return max(range(len(self.tree.leaves)), key=lambda i: self.tree.leaves[i].importance)

    @property
    def path(self) -> list[int]:
        """The features on the way to the most important leaf, from the root down."""
        return [split.feature for split in self.tree.leaves[self.best].splits]

    @property
    def leaves(self) -> list[int]:
        """The numbers of those that are shown: the most important one and all valid ones."""
        return [i for i, leaf in enumerate(self.group.leaves) if leaf.valid or i == self.best]


def pictured_groups(result: AnalysisResult, worst_k: int) -> list[DisplayedTree]:
    """``worst_k`` groups with a pattern: label and prediction groups in turn, the most important leaves first."""

    def ranked(grouping: str) -> list[GroupReport]:
        found = [g for g in result.report.groups if g.grouping == grouping and g.pattern and len(g.leaves) > 1]
        return sorted(found, key=lambda g: -max(leaf.importance for leaf in g.leaves))

    turns = zip_longest(ranked("label"), ranked("prediction"))
    groups = [group for turn in turns for group in turn if group is not None][: max(worst_k, 0)]
    trees = [result.trees[group.grouping, group.class_name] for group in groups]
    return [
        DisplayedTree(group, tree, torch.unique(torch.cat([leaf.ids for leaf in tree.leaves])))
        for group, tree in zip(groups, trees, strict=True)
    ]


def pictured_members(result: AnalysisResult, worst_k: int) -> Tensor:
    """The ids (U,) int64, ascending, of the groups whose rules are shown."""
    members = torch.cat([torch.empty(0, dtype=torch.int64), *(one.members for one in pictured_groups(result, worst_k))])
    return torch.from_numpy(np.unique(members.numpy()))


@dataclass(frozen=True)
class Outcome:
    """Whether an example failed, and how: "-> dog" for what a cat was taken for, "label: dog" for what it is."""

    failed: bool
    text: str


def outcomes(grades: Grades, group: GroupReport) -> dict[int, Outcome]:
    """By id, for the members of a group."""
    k = grades.class_names.index(group.class_name)
    of_label = group.grouping == "label"
    mine, other = (grades.labels, grades.predictions) if of_label else (grades.predictions, grades.labels)
    rows = mine == k
    sign = "->" if of_label else "label:"
    return {
        i: Outcome(o != k, f"{sign} {clean(grades.class_names[o], 40)}" if o != k else "")
        for i, o in zip(grades.ids[rows].tolist(), other[rows].tolist(), strict=True)
    }
