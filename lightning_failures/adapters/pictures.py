"""Which pictures an analysis asks for: the extreme images of the worst classes, and what their rules look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_failures.candidates import ClassCaptions
from lightning_failures.encoders import FeatureEncoder, ModuleEncoder
from lightning_failures.gallery import Gallery, Picture, class_picture, rule_picture
from lightning_failures.records import ClassReport, FailureReport, FeatureReport, Grades, GroupReport
from lightning_failures.splits import stable_hash
from lightning_failures.visuals import most_activating

__all__ = ["Rows", "Sources", "browsed_ids", "draw_gallery", "pictured_members"]

RULE_IMAGES = 6
BROWSED = 1000
"""How many examples the table of the HTML report and TensorBoard's projector show."""


@dataclass(frozen=True)
class Rows:
    """Embeddings of some examples: ids (U,), ascending, and values (U, D)."""

    ids: Tensor
    values: Tensor

    def of(self, ids: Tensor) -> Tensor:
        """(n,) ids that are among them -> (n, D)."""
        return self.values[torch.searchsorted(self.ids, ids)]


@dataclass(frozen=True)
class Sources:
    """What the pictures of one analysis are drawn from.

    Attributes:
        images: ids -> images (n, C, H, W) in [0, 1].
        robust: What made the features, if it has heat maps.
        features: Robust features of all members of the groups whose rules are shown, or None.
        embeddings: Of the directions' encoder: those of the same members and of what is browsed, as far as there are.
        captions: Class (index) -> its candidate captions; None: no captions.
        browsed: (n,) ids of the examples to look through.
    """

    images: Callable[[Sequence[int]], Tensor]
    robust: FeatureEncoder | None
    features: Rows | None
    embeddings: Rows | None
    captions: Callable[[int], ClassCaptions | None] | None
    browsed: Tensor


def browsed_ids(report: FailureReport, *, seed: int, limit: int = BROWSED) -> Tensor:
    """The examples to look through, (n,) int64, ascending: failures first, then others, by the hash of their ids."""
    table = report.table
    if table is None:
        return torch.empty(0, dtype=torch.int64)
    ids, place = np.unique(table.ids.numpy(), return_inverse=True)
    failed = np.zeros(len(ids), dtype=bool)
    failed[place[table.failed.numpy()]] = True
    order = np.lexsort((stable_hash(ids, seed), ~failed))[:limit]
    return torch.from_numpy(ids[order]).sort().values


def pictured_members(report: FailureReport, worst_k: int) -> Tensor:
    """The ids (U,) int64, ascending, of the groups whose rules are shown."""
    rules = most_important_rules(report, worst_k)
    members = torch.cat([torch.empty(0, dtype=torch.int64), *(rule.members for rule in rules)])
    return torch.from_numpy(np.unique(members.numpy()))


def draw_gallery(
    report: FailureReport, grades: Grades, sources: Sources, *, worst_k: int
) -> tuple[Gallery, tuple[FeatureReport, ...]]:
    """Draw everything, and tell which features are shown."""
    pictures = class_pictures(report, grades, sources.images, worst_k=worst_k)
    if sources.robust is not None and sources.features is not None:
        rules = most_important_rules(report, worst_k)
        pictures += rule_pictures(rules, sources.features, sources.images, sources.robust)
    return Gallery(tuple(pictures), None, report.epoch, report.global_step), ()


def class_pictures(
    report: FailureReport, grades: Grades, fetch: Callable[[Sequence[int]], Tensor], *, worst_k: int
) -> list[Picture]:
    """Draw the hardest and easiest images of the ``worst_k`` classes by accuracy.

    Args:
        report: What was found; holds the fitted directions.
        grades: Its grades.
        fetch: ids -> images (n, C, H, W) in [0, 1].
        worst_k: How many.
    """
    worst = sorted(
        (entry for entry in report.classes if entry.accuracy is not None), key=lambda c: (not c.pattern, c.accuracy)
    )
    return [_class_picture(report, entry, grades, fetch) for entry in worst[:worst_k] if entry.hardest_ids]


@dataclass(frozen=True)
class Rule:
    """The most important leaf of a group.

    Attributes:
        group: The group.
        leaf: Number of the leaf.
        feature: That of its last split.
        members: (n,) int64, the ids of the group.
    """

    group: GroupReport
    leaf: int
    feature: int
    members: Tensor


def most_important_rules(report: FailureReport, worst_k: int) -> list[Rule]:
    """Those of the ``worst_k`` groups with the most important leaves."""
    groups = sorted(
        (g for g in report.groups if g.pattern and len(g.leaves) > 1),
        key=lambda g: -max(leaf.importance for leaf in g.leaves),
    )
    rules = []
    for group in groups[:worst_k]:
        tree = report.trees[group.grouping, group.class_name]
        index = max(range(len(tree.leaves)), key=lambda i: tree.leaves[i].importance)
        members = torch.unique(torch.cat([leaf.ids for leaf in tree.leaves]))
        rules.append(Rule(group, index, tree.leaves[index].splits[-1].feature, members))
    return rules


def rule_pictures(
    rules: Sequence[Rule],
    features: Rows,
    fetch: Callable[[Sequence[int]], Tensor],
    robust: FeatureEncoder,
) -> list[Picture]:
    """Draw for each rule the images of the group that its last split's feature likes best.

    Args:
        rules: Which.
        features: Of all members.
        fetch: ids -> images (n, C, H, W) in [0, 1].
        robust: What made the features, for heat maps.
    """
    pictures = []
    for rule in rules:
        ids = rule.members[most_activating(features.of(rule.members)[:, rule.feature], RULE_IMAGES)].tolist()
        images = fetch(ids)
        maps = robust.encode_maps(images)[:, rule.feature]
        seen = robust.view(images) if isinstance(robust, ModuleEncoder) else images  # maps belong on what the model saw
        pictures.append(rule_picture(rule.group, rule.leaf, seen, maps, feature=f"feature {rule.feature}", ids=ids))
    return pictures


def _class_picture(
    report: FailureReport, entry: ClassReport, grades: Grades, fetch: Callable[[Sequence[int]], Tensor]
) -> Picture:
    assert report.directions is not None
    mine = grades.labels == grades.class_names.index(entry.name)
    scores = dict(zip(grades.ids[mine].tolist(), report.directions.out_of_fold[mine].tolist(), strict=True))
    guesses = dict(zip(grades.ids[mine].tolist(), grades.predictions[mine].tolist(), strict=True))

    def texts(ids: Sequence[int]) -> list[str]:
        return [f"{scores[i]:+.2f}\n-> {grades.class_names[guesses[i]]}" for i in ids]

    return class_picture(
        entry,
        fetch(entry.hardest_ids),
        fetch(entry.easiest_ids),
        hardest_texts=texts(entry.hardest_ids),
        easiest_texts=texts(entry.easiest_ids),
    )
