"""Counterfactual checks of what pictures show: regions of features are pasted, captions are rendered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lightning_failures.analysis.counterfactuals import (
    MIN_PAIRS,
    PASTED,
    RENDERED,
    Box,
    hottest_box,
    not_measured,
    paste,
    pasted_flips,
    rendered_gap,
)
from lightning_failures.core.budget import PROGRESS_DELAY, Deadline
from lightning_failures.core.hashing import stable_hash
from lightning_failures.data.grades import Grades
from lightning_failures.data.records import CounterfactualReport
from lightning_failures.data.report import ClassReport
from lightning_failures.generators.base import ImageGenerator
from lightning_failures.interventions.synthesis.generate import image_seeds
from lightning_failures.interventions.synthesis.image_checks import blank, uint8_images
from lightning_failures.trainer.changed_images import Answers, ChangedImages
from lightning_failures.trainer.pictures.sources import DisplayedTree

TARGETS = 40
"""Number of images that the regions of a feature are pasted onto."""

SEEDS = 32
"""Number of seeds from which each caption is rendered."""

SEEDS_AT_ONCE = 4
"""Number of seeds that are rendered at once, each from up to three captions."""

RENDER_SECONDS = 600.0
"""Time for all images that are rendered in an analysis."""

PASTE_SECONDS = 300.0
"""Time for all regions that are pasted in an analysis without a deadline."""

MIN_PASTE_SECONDS = 5.0
"""Time for the regions that are pasted, however short an epoch is."""

OUT_OF_TIME = "out of time"

_SALT = 0xC0F


@dataclass(frozen=True)
class FeatureRegions:
    """Where a feature is active on the images that activate it most.

    Attributes:
        ids: (n,) int64, the ids of the images.
        images: (n, C, H, W) in [0, 1].
        boxes: The region of each image; None where it does not lie on the image.
    """

    ids: Tensor
    images: Tensor
    boxes: list[Box | None]

    @classmethod
    def of(cls, ids: Tensor, images: Tensor, maps: Tensor, view: Callable[[Tensor], Tensor]) -> FeatureRegions:
        """Find the regions from heat maps.

        Args:
            ids: (n,) int64.
            images: (n, C, H, W) in [0, 1].
            maps: (n, h, w), heat maps that cover ``view(images)``.
            view: Returns the part of images that the encoder sees. It is shown the coordinates of the pixels as an
                image, so that regions are found on the whole image however it is cropped and resized.
        """
        channels, height, width = images.shape[1:]
        across = ((torch.arange(width) + 0.5) / width).expand(1, channels, height, width)
        down = ((torch.arange(height) + 0.5) / height)[:, None].expand(1, channels, height, width)
        seen_across, seen_down = view(across)[0, 0].cpu(), view(down)[0, 0].cpu()
        maps = F.interpolate(maps[:, None].float().cpu(), seen_across.shape, mode="bilinear", align_corners=False)[:, 0]
        return cls(ids, images, [_on_image(hottest_box(heat), seen_down, seen_across) for heat in maps])


def _on_image(box: Box, down: Tensor, across: Tensor) -> Box | None:
    """Return the region of the whole image for a region of what the encoder sees; None if it is empty."""
    height, width = down.shape
    rows = down[round(box[0] * height) : round(box[2] * height), width // 2]
    columns = across[height // 2, round(box[1] * width) : round(box[3] * width)]
    if not len(rows) or not len(columns):
        return None
    half_row, half_column = 0.5 / height, 0.5 / width
    top, bottom = float(rows.min()) - half_row, float(rows.max()) + half_row
    left, right = float(columns.min()) - half_column, float(columns.max()) + half_column
    found = max(top, 0.0), max(left, 0.0), min(bottom, 1.0), min(right, 1.0)
    return found if found[0] < found[2] and found[1] < found[3] else None


@dataclass(frozen=True)
class _Asked:
    """An example, its image (C, H, W), and whether the model is right about it."""

    id: int
    image: Tensor
    right: bool


@dataclass(frozen=True)
class FeaturePaster:
    """Pastes regions of features onto images of the same class, and asks the model.

    Attributes:
        answers: Asks the model.
        images: Returns the images (C, H, W) in [0, 1] of n ids.
        grades: N rows.
        deadline: When to stop.
    """

    answers: Answers
    images: Callable[[Sequence[int]], Sequence[Tensor]]
    grades: Grades
    deadline: Deadline
    _asked: dict[int, _Asked] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(
        cls,
        model: ChangedImages,
        images: Callable[[Sequence[int]], Sequence[Tensor]],
        grades: Grades,
        deadline: Deadline | None,
    ) -> Iterator[FeaturePaster]:
        """Return, for the block, the paster that has what is left until a deadline, and some seconds at least."""
        seconds = PASTE_SECONDS if deadline is None else max(deadline.left, MIN_PASTE_SECONDS)
        with model.open() as answers:
            yield cls(answers, images, grades, Deadline.after(seconds))

    def check(
        self, feature: int, tree: DisplayedTree, values: Tensor, find: Callable[[], FeatureRegions]
    ) -> CounterfactualReport:
        """Return whether the regions of a feature flip answers more often than ordinary patches do.

        Where more of the feature means failure, regions are pasted onto correct images, else onto failures. The control
        is the same region of another of these images, of the same class. An error is the reason of a check that is not
        measured.

        Args:
            feature: Index of the feature.
            tree: The tree with the feature.
            values: (n,) float, the feature of the members of the group.
            find: Finds its regions.
        """
        rows = _rows_of(self.grades, tree.members)
        failed = self.grades.failed[rows]
        repairs = not _fails_above(feature, tree, values, failed)
        return self.check_rows(rows[failed == repairs], repairs, find)

    def check_rows(self, rows: Tensor, repairs: bool, find: Callable[[], FeatureRegions]) -> CounterfactualReport:
        """Return whether the regions of a feature flip answers to some examples more often than ordinary patches do.

        Args:
            rows: (m,) int64, rows of the grades, all failures or all correct.
            repairs: Whether they are failures.
            find: Finds the regions.
        """
        if self.deadline.passed:
            return not_measured(PASTED, OUT_OF_TIME, repairs=repairs)
        try:
            return self._check(rows, repairs, find())
        except Exception as error:  # as of the user's step; the pictures can still be drawn
            return not_measured(PASTED, reason_of(error), repairs=repairs)

    def _check(self, rows: Tensor, repairs: bool, regions: FeatureRegions) -> CounterfactualReport:
        """Paste onto the examples in some rows, those with an outcome that the feature should flip."""
        labels = dict(zip(self.grades.ids.tolist(), self.grades.labels.tolist(), strict=True))
        top = regions.ids.tolist()
        of_class: dict[int, list[int]] = {}
        for number, box in enumerate(regions.boxes):
            if box is not None:
                of_class.setdefault(labels[top[number]], []).append(number)
        ids = [i for i in _spread(self.grades, rows) if labels[i] in of_class and i not in top][:TARGETS]
        if len(ids) < MIN_PAIRS:
            what = "failures" if repairs else "correct images"
            return not_measured(
                PASTED, f"only {len(ids)} {what} of the same class to paste onto", images=len(ids), repairs=repairs
            )

        as_graded = [one for one in self._unchanged(ids) if one.right != repairs]
        pairs = _pairs([one.id for one in as_graded], [one.image for one in as_graded], labels, regions, of_class)
        shown = [pair.id for pair in pairs]
        flipped = self.answers(shown, [pair.with_region for pair in pairs]) == repairs
        by_control = self.answers(shown, [pair.with_patch for pair in pairs]) == repairs
        return pasted_flips(flipped, by_control, repairs=repairs)

    def _unchanged(self, ids: Sequence[int]) -> list[_Asked]:
        """Return the images of examples, with the answers about them; those of the check before are known."""
        new = [i for i in ids if i not in self._asked]
        images = list(self.images(new)) if new else []
        right = self.answers(new, images).tolist()
        found = self._asked | {i: _Asked(i, image, one) for i, image, one in zip(new, images, right, strict=True)}
        self._asked.clear()
        self._asked.update({i: found[i] for i in ids})
        return list(self._asked.values())


@dataclass(frozen=True)
class _Pair:
    """An image, changed in two ways.

    Attributes:
        id: Id of the example.
        with_region: (C, H, W), with the region of a feature.
        with_patch: (C, H, W), with the same region of another image of its class and outcome.
    """

    id: int
    with_region: Tensor
    with_patch: Tensor


def _pairs(
    ids: Sequence[int],
    images: Sequence[Tensor],
    labels: dict[int, int],
    regions: FeatureRegions,
    of_class: dict[int, list[int]],
) -> list[_Pair]:
    """Return the pairs of images: regions of a class take turns, and the ordinary image is the next one of the class.

    Args:
        ids: Ids of n examples.
        images: Their images.
        labels: Label by id.
        regions: The regions.
        of_class: Numbers of the regions that may be pasted, by label.
    """
    pairs = []
    for label, numbers in of_class.items():
        rows = [row for row, i in enumerate(ids) if labels[i] == label]
        for turn, row in enumerate(rows if len(rows) > 1 else ()):
            number, other = numbers[turn % len(numbers)], rows[(turn + 1) % len(rows)]
            box, image = regions.boxes[number], images[row]
            assert box is not None
            pairs.append(_Pair(ids[row], paste(image, regions.images[number], box), paste(image, images[other], box)))
    return pairs


def _rows_of(grades: Grades, members: Tensor) -> Tensor:
    """Return the rows of examples with one row each: (n,) int64 in the order of ``members``."""
    return torch.searchsorted(grades.ids, members)


def _spread(grades: Grades, rows: Tensor) -> list[int]:
    """Return the ids of the examples in some rows, by their hash; one of each source."""
    ids = grades.ids[rows].numpy()
    order = np.argsort(stable_hash(ids, _SALT), kind="stable")
    if grades.groups is not None:
        order = order[np.sort(np.unique(grades.groups[rows].numpy()[order], return_index=True)[1])]
    return [int(i) for i in ids[order]]


def _fails_above(feature: int, tree: DisplayedTree, values: Tensor, failed: Tensor) -> bool:
    """Return whether more of a feature means failure: by the rule of the best leaf, else by the mean of the failures.

    Args:
        feature: Index of the feature.
        tree: The tree.
        values: (n,) the feature of its members.
        failed: (n,) bool.
    """
    sides = [split.above for split in tree.tree.leaves[tree.best].splits if split.feature == feature]
    if sides:
        return sides[-1]
    return bool(values[failed].mean() >= values[~failed].mean())


def render_captions(
    classes: Sequence[ClassReport],
    grades: Grades,
    model: ChangedImages,
    generator: ImageGenerator,
    *,
    limit: int,
    seed: int,
) -> tuple[ClassReport, ...]:
    """Render the captions of the classes with a pattern, ask the model, and return all classes with the reports.

    Each seed is rendered from the hardest, the reference and the easiest caption. The images are shown to the model in
    place of an example of the class. An error is the reason of a check that is not measured.

    Args:
        classes: K classes.
        grades: N rows.
        model: Asks the model.
        generator: The generator, which is closed afterwards.
        limit: Largest number of classes, those that it pays most to fix.
        seed: Seed of the seeds of all images.
    """
    captioned = [entry for entry in classes if entry.pattern and entry.hardest_captions and entry.reference_caption]
    chosen = sorted(captioned, key=lambda entry: entry.rank)[: max(limit, 0)]
    if not chosen:
        return tuple(classes)
    deadline = Deadline.after(RENDER_SECONDS)
    reports: dict[str, CounterfactualReport] = {}
    description = f"FailureModes renders captions with {generator.name}"
    total = SEEDS * len(chosen)
    try:
        with tqdm(desc=description, total=total, unit="seed", delay=PROGRESS_DELAY, leave=False) as bar:
            for number, entry in enumerate(chosen):
                share = Deadline.after(deadline.left / (len(chosen) - number))
                reports[entry.name] = _rendered(entry, grades, model, generator, share, seed, bar.update)
    finally:
        generator.close()
    return tuple(replace(entry, counterfactual=reports.get(entry.name)) for entry in classes)


def _rendered(
    entry: ClassReport,
    grades: Grades,
    model: ChangedImages,
    generator: ImageGenerator,
    deadline: Deadline,
    seed: int,
    advance: Callable[[int], object],
) -> CounterfactualReport:
    """Return the check of the hardest caption of a class."""
    assert entry.reference_caption is not None
    hard = entry.hardest_captions[0]
    if hard == entry.reference_caption:
        return not_measured(RENDERED, "no caption holds", generator=generator.name)
    label = grades.class_names.index(entry.name)
    captions = [hard, entry.reference_caption, *entry.easiest_captions[:1]]
    right: list[Tensor] = []
    try:
        example = int(grades.ids[grades.labels == label][0])
        with model.open() as answers:
            for seeds in _blocks(seed, label):
                if deadline.passed:
                    break
                right.append(_answered(answers, example, generator, captions, seeds))
                advance(len(seeds))
    except Exception as error:  # of the generator, or of the user's step
        return not_measured(RENDERED, reason_of(error), generator=generator.name)
    of_captions = torch.cat([torch.empty(0, len(captions), dtype=torch.bool), *right]).T
    found = rendered_gap(*of_captions, generator=generator.name)
    return replace(found, reason=OUT_OF_TIME) if found.reason is not None and deadline.passed else found


def _blocks(seed: int, label: int) -> Iterator[list[int]]:
    """Yield the seeds of a class in blocks."""
    seeds = image_seeds(seed, 0, label)
    for _ in range(SEEDS // SEEDS_AT_ONCE):
        yield [next(seeds) for _ in range(SEEDS_AT_ONCE)]


def _answered(
    answers: Answers, example: int, generator: ImageGenerator, captions: Sequence[str], seeds: Sequence[int]
) -> Tensor:
    """Return whether the model is right about the images of n seeds: (m, C) bool, without seeds with a blank image."""
    prompts = [caption for _ in seeds for caption in captions]
    repeated = [one for one in seeds for _ in captions]
    images = uint8_images(generator.generate(prompts, repeated), len(prompts), generator.name)
    right = answers([example] * len(images), [image.float() / 255 for image in images]).view(len(seeds), len(captions))
    usable = torch.tensor([blank(image) is None for image in images]).view(len(seeds), len(captions))
    return right[usable.all(dim=1)]


def reason_of(error: Exception) -> str:
    """Return the type and the first line of an error."""
    first: Any = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}"
