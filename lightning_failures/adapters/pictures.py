"""Which pictures an analysis asks for: the extreme images of the worst classes, and what their rules look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_failures.encoders import FeatureEncoder, ModuleEncoder
from lightning_failures.records import ClassReport, FailureReport, Grades, GroupReport
from lightning_failures.visuals import Picture, class_picture, most_activating, rule_picture

__all__ = ["Rule", "class_pictures", "most_important_rules", "rule_pictures"]

RULE_IMAGES = 6


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
    featured: tuple[Tensor, Tensor],
    fetch: Callable[[Sequence[int]], Tensor],
    robust: FeatureEncoder,
) -> list[Picture]:
    """Draw for each rule the images of the group that its last split's feature likes best.

    Args:
        rules: Which.
        featured: ids (U,), ascending, of all members, and their robust features (U, D).
        fetch: ids -> images (n, C, H, W) in [0, 1].
        robust: What made the features, for heat maps.
    """
    ids, features = featured
    pictures = []
    for rule in rules:
        values = features[torch.searchsorted(ids, rule.members), rule.feature]
        images = fetch(rule.members[most_activating(values, RULE_IMAGES)].tolist())
        maps = robust.encode_maps(images)[:, rule.feature]
        seen = robust.view(images) if isinstance(robust, ModuleEncoder) else images  # maps belong on what the model saw
        pictures.append(rule_picture(rule.group, rule.leaf, seen, maps, feature=f"feature {rule.feature}"))
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
