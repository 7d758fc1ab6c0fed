"""Pictures of the features in displayed rules: images, heat maps, attacks and a caption for each feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor
from tqdm import tqdm

from lightning_failures.analysis.counterfactuals import PASTED, not_measured
from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.budget import PROGRESS_DELAY
from lightning_failures.core.text import clean
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import grouping_named
from lightning_failures.data.records import CounterfactualReport
from lightning_failures.data.report import FeatureReport
from lightning_failures.encoders.feature_attack import ITERATIONS
from lightning_failures.report.feature_names import FeatureNames, with_names
from lightning_failures.report.gallery import Picture, feature_picture
from lightning_failures.report.images import most_activating
from lightning_failures.trainer.pictures.counterfactuals import FeaturePaster, FeatureRegions, reason_of
from lightning_failures.trainer.pictures.feature_views import (
    AttackResult,
    FeatureViews,
    attack_features,
)
from lightning_failures.trainer.pictures.sources import (
    DisplayedTree,
    PictureInputs,
    distinctive_caption,
    example_outcomes,
    of_one_size,
)
from lightning_failures.trees.growing import rule_text

FEATURE_IMAGES = 6


@dataclass(frozen=True)
class _FeatureImages:
    """A feature with its most activating images, before it is attacked.

    Attributes:
        report: What is reported of the feature.
        role: Which groups the feature splits.
        seen: (n, C, h, w), the images as the encoder sees them.
        maps: (n, h, w), the heat maps on those images.
        strength: (n,), the activations.
        texts: A text for each image.
        check: Makes the counterfactual check of the feature.
    """

    report: FeatureReport
    role: str
    seen: Tensor
    maps: Tensor
    strength: Tensor
    texts: list[str]
    check: Callable[[FeaturePaster], CounterfactualReport]


NOT_ASKED_FOR = "no feature attack: it takes minutes and was not asked for"


def feature_pictures(
    shown: Sequence[DisplayedTree], result: AnalysisResult, grades: Grades, inputs: PictureInputs
) -> tuple[tuple[FeatureReport, ...], list[Picture]]:
    """Draw each feature in the displayed rules once, on images of the first group that it splits.

    The features on the path to the leaf of the largest gain of a group come first.
    """
    if inputs.robust is None or inputs.features is None:
        return (), []
    on_paths = [feature for tree in shown for feature in tree.path]
    in_any_split = [feature for tree in shown for feature in tree.tree.split_features]
    split_by: dict[int, list[DisplayedTree]] = {}
    for feature in on_paths + in_any_split:
        split_by.setdefault(feature, [tree for tree in shown if feature in tree.tree.split_features])

    views = FeatureViews(inputs.robust, inputs.store)
    inspected = [_inspect(views, feature, trees, result, grades, inputs) for feature, trees in split_by.items()]
    if inputs.attacks:
        attacks = attack_features(views, [(one.report.feature, one.seen) for one in inspected], inputs.deadline)
    else:
        attacks = [AttackResult(note=NOT_ASKED_FOR) for _ in inspected]
    views.flush()
    if inputs.model is not None:
        try:
            with FeaturePaster.open(inputs.model, inputs.images, grades, inputs.deadline) as paster:
                inspected = _checked(inspected, paster)
        except Exception as error:  # of the user's module, when its state is kept or put back
            inspected = [_with_check(one, not_measured(PASTED, reason_of(error))) for one in inspected]
    pictures = [_picture(one, attack) for one, attack in zip(inspected, attacks, strict=True)]
    return tuple(one.report for one in inspected), pictures


def _checked(inspected: Sequence[_FeatureImages], paster: FeaturePaster) -> list[_FeatureImages]:
    """Add the counterfactual check of each feature."""
    with tqdm(inspected, desc="FailureModes checks features", delay=PROGRESS_DELAY, leave=False) as features:
        return [_with_check(one, one.check(paster)) for one in features]


def _with_check(inspected: _FeatureImages, check: CounterfactualReport) -> _FeatureImages:
    return replace(inspected, report=replace(inspected.report, counterfactual=check))


def _picture(inspected: _FeatureImages, attack: AttackResult) -> Picture:
    """Return the picture of a feature: images, heat maps, and images after the attack."""
    attack_texts: list[str] = []
    if attack.strength is not None:
        before_after = zip(inspected.strength.tolist(), attack.strength.tolist(), strict=True)
        attack_texts = [f"{before:.2f} -> {after:.2f}" for before, after in before_after]
    shortened = attack.iterations not in (0, ITERATIONS)
    remark = f" ({attack.iterations} of {ITERATIONS} steps: time was short)" if shortened else ""
    return feature_picture(
        inspected.report,
        inspected.seen,
        inspected.maps,
        () if attack.images is None else attack.images,
        texts=inspected.texts,
        attack_texts=attack_texts,
        attack_title=f"feature attack: changed until it is as strong as possible{remark}",
        role=inspected.role,
        note=attack.note,
    )


def _inspect(
    views: FeatureViews,
    feature: int,
    trees: Sequence[DisplayedTree],
    result: AnalysisResult,
    grades: Grades,
    inputs: PictureInputs,
) -> _FeatureImages:
    """Return the most activating images of a feature in the first group, with heat maps, names and a caption."""
    assert inputs.features is not None
    first = trees[0]
    outcomes = example_outcomes(grades, first.group, first.members)
    values = inputs.features.select(first.members)[:, feature]
    rows = most_activating(values, FEATURE_IMAGES)
    top_ids, strength = first.members[rows], values[rows]
    images = of_one_size(inputs.images(top_ids.tolist()))

    named = inputs.names.of(feature)
    report = FeatureReport(
        feature,
        tuple(tree.name for tree in trees),
        tuple(top_ids.tolist()),
        name=named.name,
        tag=named.tag,
        action=named.action,
    )
    report = _with_caption(report, first, top_ids, result, grades, inputs)
    maps = views.maps(images, feature)

    def check(paster: FeaturePaster) -> CounterfactualReport:
        return paster.check(feature, first, values, partial(FeatureRegions.of, top_ids, images, maps, views.seen))

    texts = [
        f"{value:.2f}\n{outcomes[example].text or 'correct'}"
        for example, value in zip(top_ids.tolist(), strength.tolist(), strict=True)
    ]
    role = _role(feature, trees, inputs.names)
    return _FeatureImages(report, role, views.seen(images), maps, strength, texts, check)


def _role(feature: int, trees: Sequence[DisplayedTree], names: FeatureNames) -> str:
    """Return which groups the feature splits, and its part in the rule of their leaves of the largest gain."""
    clauses = []
    for tree in trees:
        group = f"{tree.group.grouping} group of {clean(tree.group.class_name, 80)}"
        in_rule = tuple(split for split in tree.tree.leaves[tree.best].splits if split.feature == feature)
        rule = f": its leaf of the largest gain has {rule_text(in_rule)}" if in_rule else ""
        clauses.append(f"splits the {group}{rule}")
    return with_names("; ".join(clauses), names.names)


def _with_caption(
    report: FeatureReport,
    tree: DisplayedTree,
    top_ids: Tensor,
    result: AnalysisResult,
    grades: Grades,
    inputs: PictureInputs,
) -> FeatureReport:
    """Add the caption that best separates the most activating images from the others of their group."""
    grouping = grouping_named(tree.group.grouping)
    if grouping is None or grouping.across_classes:
        return report
    directions, name = result.directions, tree.group.class_name
    return replace(report, **distinctive_caption(inputs, directions, grades, name, tree.members, top_ids))
