"""Which pictures an analysis asks for: the extreme images of the worst classes, and what their rules look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_failures.encoders import FeatureEncoder, ModuleEncoder
from lightning_failures.records import ClassReport, FailureReport, Grades
from lightning_failures.visuals import Picture, class_picture, most_activating, rule_picture

__all__ = ["draw_pictures"]

RULE_IMAGES = 6


def draw_pictures(
    report: FailureReport,
    grades: Grades,
    fetch: Callable[[Sequence[int]], Tensor],
    featured: tuple[Tensor, Tensor] | None,
    robust: FeatureEncoder | None,
    *,
    worst_k: int,
) -> list[Picture]:
    """Draw the pictures of the ``worst_k`` classes by accuracy, and of as many rules.

    Args:
        report: What was found; holds the fitted directions and trees.
        grades: Its grades.
        fetch: ids -> images (n, C, H, W) in [0, 1].
        featured: ids (U,) and robust features (U, D), or None.
        robust: What made the features, for heat maps.
        worst_k: How many.
    """
    worst = sorted(
        (entry for entry in report.classes if entry.accuracy is not None), key=lambda c: (not c.pattern, c.accuracy)
    )
    pictures = [_class_picture(report, entry, grades, fetch) for entry in worst[:worst_k] if entry.hardest_ids]
    if featured is not None and robust is not None:
        pictures += _rule_pictures(report, fetch, featured, robust, worst_k)
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


def _rule_pictures(
    report: FailureReport,
    fetch: Callable[[Sequence[int]], Tensor],
    featured: tuple[Tensor, Tensor],
    robust: FeatureEncoder,
    worst_k: int,
) -> list[Picture]:
    """For the most important leaf of a group: the images of the group that its last split's feature likes best."""
    ids, features = featured
    groups = sorted(
        (g for g in report.groups if g.pattern and len(g.leaves) > 1),
        key=lambda g: -max(leaf.importance for leaf in g.leaves),
    )
    pictures = []
    for group in groups[:worst_k]:
        tree = report.trees[group.grouping, group.class_name]
        index = max(range(len(tree.leaves)), key=lambda i: tree.leaves[i].importance)
        feature = tree.leaves[index].splits[-1].feature
        members = torch.unique(torch.cat([leaf.ids for leaf in tree.leaves]))
        values = features[torch.searchsorted(ids, members), feature]
        images = fetch(members[most_activating(values, RULE_IMAGES)].tolist())
        maps = robust.encode_maps(images)[:, feature]
        seen = robust.view(images) if isinstance(robust, ModuleEncoder) else images  # maps belong on what the model saw
        pictures.append(rule_picture(group, index, seen, maps, feature=f"feature {feature}"))
    return pictures
