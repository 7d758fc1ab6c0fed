"""Which pictures an analysis asks for: extreme images of the worst classes, and what their rules mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from lightning_failures.adapters.feature_pictures import FeatureViews, attack_features
from lightning_failures.adapters.reading import AT_ONCE
from lightning_failures.attacks import ITERATIONS
from lightning_failures.budget import Deadline
from lightning_failures.cache import EmbeddingStore
from lightning_failures.candidates import ClassCaptions
from lightning_failures.captions import caption_that_tells
from lightning_failures.encoders import FeatureEncoder
from lightning_failures.feature_names import FeatureNames, with_names
from lightning_failures.gallery import Gallery, Picture, Thumbnails, class_picture, feature_picture, leaf_picture
from lightning_failures.growing import rule
from lightning_failures.records import ClassReport, FailureReport, FeatureReport, Grades, GroupReport
from lightning_failures.splits import stable_hash
from lightning_failures.text import clean
from lightning_failures.threads import one_thread
from lightning_failures.trees import FailureTree
from lightning_failures.visuals import fit_square, most_activating

__all__ = ["Rows", "Sources", "browsed_ids", "draw_gallery", "pictured_members"]

FEATURE_IMAGES = 6
LEAF_IMAGES = 8
THUMBNAIL = 48  # px
BROWSED = 1000
"""How many examples the table of the HTML report and TensorBoard's projector show."""

_LEAF_SALT = 0x1EAF


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
class Sources:
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


@dataclass(frozen=True)
class Pictured:
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


def pictured_groups(report: FailureReport, worst_k: int) -> list[Pictured]:
    """``worst_k`` groups with a pattern: label and prediction groups in turn, the most important leaves first."""

    def ranked(grouping: str) -> list[GroupReport]:
        found = [g for g in report.groups if g.grouping == grouping and g.pattern and len(g.leaves) > 1]
        return sorted(found, key=lambda g: -max(leaf.importance for leaf in g.leaves))

    turns = zip_longest(ranked("label"), ranked("prediction"))
    groups = [group for turn in turns for group in turn if group is not None][: max(worst_k, 0)]
    trees = [report.trees[group.grouping, group.class_name] for group in groups]
    return [
        Pictured(group, tree, torch.unique(torch.cat([leaf.ids for leaf in tree.leaves])))
        for group, tree in zip(groups, trees, strict=True)
    ]


def pictured_members(report: FailureReport, worst_k: int) -> Tensor:
    """The ids (U,) int64, ascending, of the groups whose rules are shown."""
    members = torch.cat([torch.empty(0, dtype=torch.int64), *(one.members for one in pictured_groups(report, worst_k))])
    return torch.from_numpy(np.unique(members.numpy()))


def draw_gallery(
    report: FailureReport, grades: Grades, sources: Sources, *, worst_k: int
) -> tuple[Gallery, tuple[FeatureReport, ...]]:
    """Draw everything, and tell which features are shown. Random transforms apart, nothing random is in it.

    Attacks take the time: they come last, and stop at the deadline.
    """
    pictures = class_pictures(report, grades, sources.images, worst_k=worst_k)
    shown = [] if sources.robust is None or sources.features is None else pictured_groups(report, worst_k)
    leaves = leaf_pictures(shown, grades, sources.images, sources.names.names)
    thumbnails = browse(sources)
    features, drawn = feature_pictures(shown, report, grades, sources)
    gallery = Gallery((*pictures, *drawn, *leaves), thumbnails, report.epoch, report.global_step)
    return gallery, features


def browse(sources: Sources) -> Thumbnails | None:
    """Read the examples to look through, a batch at a time, as far as time allows."""
    squares: list[Tensor] = []
    for some in torch.split(sources.browsed, AT_ONCE):
        if not len(some) or (sources.deadline is not None and sources.deadline.passed):
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
    report: FailureReport, grades: Grades, fetch: Callable[[Sequence[int]], Tensor], *, worst_k: int
) -> list[Picture]:
    """Draw the hardest, easiest and least confident images of the ``worst_k`` classes by accuracy.

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


def leaf_pictures(
    shown: Sequence[Pictured], grades: Grades, fetch: Callable[[Sequence[int]], Tensor], names: dict[int, str]
) -> list[Picture]:
    """Draw failures that follow each rule, chosen by the hash of their ids, and correct ones beside them.

    Where all that follow it fail, the correct ones are those of the rest of the group.
    """
    pictures = []
    for one in shown:
        outcomes = _outcomes(grades, one.group)
        for index in one.leaves:
            ids = _shuffled(one.tree.leaves[index].ids)
            failures = [i for i in ids if outcomes[i].failed][:LEAF_IMAGES]
            inside = [i for i in ids if not outcomes[i].failed]
            successes = (inside or [i for i in _shuffled(one.members) if not outcomes[i].failed])[:LEAF_IMAGES]
            pictures.append(
                leaf_picture(
                    one.group,
                    index,
                    fetch(failures) if failures else (),
                    fetch(successes) if successes else (),
                    failure_texts=[outcomes[i].text for i in failures],
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
    shown: Sequence[Pictured], report: FailureReport, grades: Grades, sources: Sources
) -> tuple[tuple[FeatureReport, ...], list[Picture]]:
    """Draw each feature that the rules mention once, on the images of the first group that it splits.

    First come those on the way to the most important leaf of a group.
    """
    if sources.robust is None or sources.features is None:
        return (), []
    splits: dict[int, list[Pictured]] = {}
    for feature in [f for group in shown for f in group.path] + [
        f for group in shown for f in group.tree.split_features
    ]:
        splits.setdefault(feature, [group for group in shown if feature in group.tree.split_features])
    views = FeatureViews(sources.robust, sources.store)
    looked = [_look(views, feature, groups, report, grades, sources) for feature, groups in splits.items()]
    attacked = attack_features(views, [(one.report.feature, one.seen) for one in looked], sources.deadline)
    views.flush()
    pictures = []
    for one, after in zip(looked, attacked, strict=True):
        strengths = [] if after.strength is None else zip(one.strength.tolist(), after.strength.tolist(), strict=True)
        pictures.append(
            feature_picture(
                one.report,
                one.seen,
                one.maps,
                () if after.images is None else after.images,
                texts=one.texts,
                attack_texts=[f"{a:.2f} -> {b:.2f}" for a, b in strengths],
                attack_title="feature attack: changed until it is as strong as possible"
                + (
                    ""
                    if after.iterations in (0, ITERATIONS)
                    else f" ({after.iterations} of {ITERATIONS} steps: time was short)"
                ),
                role=one.role,
                note=after.note,
            )
        )
    return tuple(one.report for one in looked), pictures


def _look(
    views: FeatureViews,
    feature: int,
    groups: Sequence[Pictured],
    report: FailureReport,
    grades: Grades,
    sources: Sources,
) -> _Shown:
    """Find the images of a group that a feature likes best, what it sees there, and words for it."""
    assert sources.features is not None
    first, outcomes = groups[0], _outcomes(grades, groups[0].group)
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
        f"{value:.2f}\n{outcomes[i].text or 'correct'}"
        for i, value in zip(top.tolist(), strength.tolist(), strict=True)
    ]
    told = _captioned(told, first, top, report, grades, sources)
    return _Shown(
        told, _role(feature, groups, sources.names), views.seen(images), views.maps(images, feature), strength, texts
    )


def _role(feature: int, groups: Sequence[Pictured], names: FeatureNames) -> str:
    """For each group that the feature splits, on which side the most important leaf lies, if on one."""
    told = []
    for one in groups:
        path = [split for split in one.tree.leaves[one.best].splits if split.feature == feature]
        where = f"{one.group.grouping} group of {clean(one.group.class_name, 80)}"
        told.append(f"splits the {where}" + (f": its most important leaf has {rule(tuple(path))}" if path else ""))
    return with_names("; ".join(told), names.names)


def _captioned(
    told: FeatureReport, first: Pictured, top: Tensor, report: FailureReport, grades: Grades, sources: Sources
) -> FeatureReport:
    """Add the caption that tells the most activating images from the others of their group."""
    rows, directions = sources.embeddings, report.directions
    if rows is None or directions is None or sources.captions is None:
        return told
    candidates = sources.captions(grades.class_names.index(first.group.class_name))
    members = first.members[rows.known(first.members)]
    if candidates is None or not len(members):
        return told
    with one_thread():
        best = caption_that_tells(
            directions, rows.of(members), torch.isin(members, top), candidates.embeddings, candidates.reference
        )
    if best is None:
        return told
    return replace(told, caption=candidates.texts[best.index], caption_score=best.score, caption_margin=best.margin)


@dataclass(frozen=True)
class _Outcome:
    """Whether an example failed, and how: "-> dog" for what a cat was taken for, "label: dog" for what it is."""

    failed: bool
    text: str


def _outcomes(grades: Grades, group: GroupReport) -> dict[int, _Outcome]:
    """By id, for the members of a group."""
    k = grades.class_names.index(group.class_name)
    of_label = group.grouping == "label"
    mine, other = (grades.labels, grades.predictions) if of_label else (grades.predictions, grades.labels)
    rows = mine == k
    sign = "->" if of_label else "label:"
    return {
        i: _Outcome(o != k, f"{sign} {clean(grades.class_names[o], 40)}" if o != k else "")
        for i, o in zip(grades.ids[rows].tolist(), other[rows].tolist(), strict=True)
    }


def _class_picture(
    report: FailureReport, entry: ClassReport, grades: Grades, fetch: Callable[[Sequence[int]], Tensor]
) -> Picture:
    assert report.directions is not None
    mine = grades.labels == grades.class_names.index(entry.name)
    ids = grades.ids[mine].tolist()
    scores = dict(zip(ids, report.directions.out_of_fold[mine].tolist(), strict=True))
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
