"""What the features look for that rules mention: images, heat maps, attacks and a caption for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.captions.scoring import most_distinctive_caption
from lightning_failures.core.text import clean
from lightning_failures.core.threads import one_thread
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import FeatureReport
from lightning_failures.encoders.feature_attack import ITERATIONS
from lightning_failures.report.feature_names import FeatureNames, with_names
from lightning_failures.report.gallery import Picture, feature_picture
from lightning_failures.report.images import most_activating
from lightning_failures.trainer.pictures.feature_views import FeatureViews, attack_features
from lightning_failures.trainer.pictures.sources import DisplayedTree, PictureInputs, outcomes
from lightning_failures.trees.growing import rule_text

FEATURE_IMAGES = 6


@dataclass(frozen=True)
class _Shown:
    """A feature with its images, before it is attacked."""

    report: FeatureReport
    role: str
    seen: Tensor  # (n, C, h, w)
    maps: Tensor  # (n, h, w)
    strength: Tensor  # (n,)
    texts: list[str]


def feature_pictures(
    shown: Sequence[DisplayedTree], result: AnalysisResult, grades: Grades, sources: PictureInputs
) -> tuple[tuple[FeatureReport, ...], list[Picture]]:
    """Draw each feature that the rules mention once, on the images of the first group that it splits.

    First come those on the way to the most important leaf of a group.
    """
    if sources.robust is None or sources.features is None:
        return (), []
    splits: dict[int, list[DisplayedTree]] = {}
    on_paths = [feature for group in shown for feature in group.path]
    for feature in on_paths + [feature for group in shown for feature in group.tree.split_features]:
        splits.setdefault(feature, [group for group in shown if feature in group.tree.split_features])
    views = FeatureViews(sources.robust, sources.store)
    looked = [_look(views, feature, groups, result, grades, sources) for feature, groups in splits.items()]
    attacked = attack_features(views, [(one.report.feature, one.seen) for one in looked], sources.deadline)
    views.flush()
    pictures = []
    for one, after in zip(looked, attacked, strict=True):
        strengths = [] if after.strength is None else zip(one.strength.tolist(), after.strength.tolist(), strict=True)
        short = after.iterations not in (0, ITERATIONS)
        hurried = f" ({after.iterations} of {ITERATIONS} steps: time was short)" if short else ""
        pictures.append(
            feature_picture(
                one.report,
                one.seen,
                one.maps,
                () if after.images is None else after.images,
                texts=one.texts,
                attack_texts=[f"{a:.2f} -> {b:.2f}" for a, b in strengths],
                attack_title=f"feature attack: changed until it is as strong as possible{hurried}",
                role=one.role,
                note=after.note,
            )
        )
    return tuple(one.report for one in looked), pictures


def _look(
    views: FeatureViews,
    feature: int,
    groups: Sequence[DisplayedTree],
    result: AnalysisResult,
    grades: Grades,
    sources: PictureInputs,
) -> _Shown:
    """Find the images of a group that a feature likes best, what it sees there, and words for it."""
    assert sources.features is not None
    first, outcome_of = groups[0], outcomes(grades, groups[0].group)
    values = sources.features.of(first.members)[:, feature]
    rows = most_activating(values, FEATURE_IMAGES)
    top, strength = first.members[rows], values[rows]
    images = sources.images(top.tolist())
    known = sources.names.of(feature)
    told = FeatureReport(
        feature,
        tuple(one.name for one in groups),
        tuple(top.tolist()),
        name=known.name,
        tag=known.tag,
        action=known.action,
    )
    texts = [
        f"{value:.2f}\n{outcome_of[i].text or 'correct'}"
        for i, value in zip(top.tolist(), strength.tolist(), strict=True)
    ]
    told = _captioned(told, first, top, result, grades, sources)
    return _Shown(
        told, _role(feature, groups, sources.names), views.seen(images), views.maps(images, feature), strength, texts
    )


def _role(feature: int, groups: Sequence[DisplayedTree], names: FeatureNames) -> str:
    """For each group that the feature splits, on which side the most important leaf lies, if on one."""
    told = []
    for one in groups:
        path = [split for split in one.tree.leaves[one.best].splits if split.feature == feature]
        where = f"{one.group.grouping} group of {clean(one.group.class_name, 80)}"
        told.append(f"splits the {where}" + (f": its most important leaf has {rule_text(tuple(path))}" if path else ""))
    return with_names("; ".join(told), names.names)


def _captioned(
    told: FeatureReport,
    first: DisplayedTree,
    top: Tensor,
    result: AnalysisResult,
    grades: Grades,
    sources: PictureInputs,
) -> FeatureReport:
    """Add the caption that tells the most activating images from the others of their group."""
    rows, directions = sources.embeddings, result.directions
    if rows is None or directions is None or sources.captions is None:
        return told
    candidates = sources.captions(grades.class_names.index(first.group.class_name))
    members = first.members[rows.known(first.members)]
    if candidates is None or not len(members):
        return told
    with one_thread():
        best = most_distinctive_caption(
            directions, rows.of(members), torch.isin(members, top), candidates.embeddings, candidates.reference
        )
    if best is None:
        return told
    return replace(told, caption=candidates.texts[best.index], caption_score=best.score, caption_margin=best.margin)
