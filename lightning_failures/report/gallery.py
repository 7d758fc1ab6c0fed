"""The pictures of an analysis: what is shown, in rows of tiles, for any sink to lay out as it likes.

A picture is structured, not a bitmap: the HTML report shows its tiles as images with texts beside them, TensorBoard and
W&B get :attr:`Picture.image`, in which texts are painted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lightning_failures.core.text import clean, number, shorten_caption, tag_part
from lightning_failures.data.report import ClassReport, FeatureReport, GroupReport
from lightning_failures.errors import DataError
from lightning_failures.report.feature_names import with_names
from lightning_failures.report.images import SIZE, heat_map, image_strip, stack, thumbnail
from lightning_failures.report.tables import score, verdict


@dataclass(frozen=True)
class Tile:
    r"""One image with its text.

    Attributes:
        image: (3, h, w) uint8 on the CPU, a thumbnail.
        text: For people; ``"\n"`` starts a new line.
        id: Of the example that it shows, or None (feature attacks).
    """

    image: Tensor
    text: str = ""
    id: int | None = None


@dataclass(frozen=True)
class Row:
    """Images that belong together, most important first."""

    title: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Picture:
    """One finding in images.

    Attributes:
        tag: Where it belongs, the same at every analysis: ``"classes/cat"``, ``"features/17"``,
            ``"leaves/label/cat/0"``.
        rows: At least one; a row may be empty.
        caption: One line for people.
    """

    tag: str
    rows: tuple[Row, ...]
    caption: str = ""

    @cached_property  # several sinks ask for it
    def image(self) -> Tensor:
        """All rows in one image, with their titles and texts: (3, H, W) uint8. Not to be written to."""
        return stack(
            [
                image_strip(
                    [tile.image for tile in row.tiles],
                    [tile.text for tile in row.tiles] if any(tile.text for tile in row.tiles) else (),
                    title=row.title,
                )
                for row in self.rows
            ]
        )


@dataclass(frozen=True)
class Thumbnails:
    """A bounded choice of examples to look through: the table of the HTML report, TensorBoard's projector.

    Attributes:
        ids: (n,) int64, ascending.
        images: (n, 3, s, s) uint8, each scaled to fit and centred on mid-gray.
        embeddings: (n, D) float32 of the failure directions' encoder, or None. A row of NaN belongs to an example that
            was graded but not embedded (a sample was looked at): it can be shown, not placed.
    """

    ids: Tensor
    images: Tensor
    embeddings: Tensor | None = None


@dataclass(frozen=True)
class Gallery:
    """Everything that an analysis shows in images. An empty one belongs to an analysis that drew none.

    Attributes:
        pictures: In the order in which people should see them.
        thumbnails: Examples to look through, or None.
        epoch: Of the analysis.
        global_step: Of the analysis.
    """

    pictures: tuple[Picture, ...] = ()
    thumbnails: Thumbnails | None = None
    epoch: int | None = None
    global_step: int | None = None


def row_of(
    title: str,
    images: Sequence[Tensor] | Tensor,
    texts: Sequence[str] = (),
    ids: Sequence[int] = (),
    *,
    size: int = SIZE,
) -> Row:
    """Make a row of thumbnails.

    Args:
        title: One line.
        images: n images (C, H, W).
        texts: None, or n.
        ids: None, or n.
        size: Least longer side of a thumbnail in pixels.

    Raises:
        DataError: Texts or ids differ from the images in number.
    """
    n = len(images)
    for name, values in (("texts", texts), ("ids", ids)):
        if len(values) not in (0, n):
            raise DataError(f"row_of: {name} must be as many as images, {n}, got {len(values)}")
    return Row(
        title,
        tuple(
            Tile(thumbnail(image, size), texts[i] if texts else "", ids[i] if ids else None)
            for i, image in enumerate(images)
        ),
    )


def class_picture(
    entry: ClassReport,
    hardest: Sequence[Tensor] | Tensor,
    easiest: Sequence[Tensor] | Tensor,
    least_confident: Sequence[Tensor] | Tensor = (),
    *,
    hardest_texts: Sequence[str] = (),
    easiest_texts: Sequence[str] = (),
    least_confident_texts: Sequence[str] = (),
    size: int = SIZE,
) -> Picture:
    r"""Show the hardest images of a class above its easiest, and the least confident, the most extreme on the left.

    The titles bear the best caption of each end where a pattern was found, and none where it would describe noise.

    Args:
        entry: The class; its ``hardest_ids``, ``easiest_ids`` and ``least_confident_ids`` name the images.
        hardest: Images (C, H, W), from the lowest decision value up.
        easiest: Images from the highest decision value down.
        least_confident: Images from the least confidence in the true class up: they differ from the hardest where
            failures share a pattern (Jain et al., figure 11). None: no such row.
        hardest_texts: Text below each image: decision value, prediction. ``"\n"`` starts a new line.
        easiest_texts: As above.
        least_confident_texts: As above.
        size: Least side of a thumbnail in pixels.
    """
    name = clean(entry.name, 80)

    def title(end: str, captions: Sequence[str]) -> str:
        return f"{name}, {end}: {captions[0]}" if entry.pattern and captions else f"{name}, {end}"

    told = f"p {verdict(entry)}, CV score {score(entry)}" if entry.pattern else verdict(entry)
    ends = [
        (title("hardest", entry.hardest_captions), hardest, hardest_texts, entry.hardest_ids),
        (title("easiest", entry.easiest_captions), easiest, easiest_texts, entry.easiest_ids),
    ]
    if len(least_confident):
        title_of_least = f"{name}, least confidence in the true class"
        ends.append((title_of_least, least_confident, least_confident_texts, entry.least_confident_ids))
    return Picture(
        f"classes/{tag_part(entry.name)}",
        tuple(
            row_of(title, images, texts, ids if len(ids) == len(images) else (), size=size)
            for title, images, texts, ids in ends
        ),
        f"{name}: error rate {number(None if entry.accuracy is None else 1 - entry.accuracy)}; {told}",
    )


def feature_picture(
    feature: FeatureReport,
    images: Sequence[Tensor] | Tensor,
    maps: Sequence[Tensor] | Tensor,
    attacks: Sequence[Tensor] | Tensor = (),
    *,
    texts: Sequence[str] = (),
    attack_texts: Sequence[str] = (),
    attack_title: str = "",
    role: str = "",
    note: str = "",
    size: int = SIZE,
) -> Picture:
    """Show what a feature looks for: images that activate it most, where, and what makes it stronger.

    Args:
        feature: The feature; its ``top_ids`` name the images, the first of its ``groups`` is theirs.
        images: n images (C, H, W) as the encoder saw them, the most activating first.
        maps: n maps (h, w) of the feature.
        attacks: n images (C, H, W), the same after a feature attack; or none.
        texts: Text below each image.
        attack_texts: Text below each attacked image.
        attack_title: What was done to them.
        role: What it has to do with failures; by default which groups it splits.
        note: What else the reader must know, such as why there are no attacks.
        size: Least side of a thumbnail in pixels.

    Source: Singla et al., Barlow (CVPR 2021), section 4: the three visualisations of a feature.
    """
    called = f"feature {feature.feature}" + (f' "{clean(feature.name, 60)}"' if feature.name else "")
    looks = f'looks like "{shorten_caption(feature.caption)}" (hypothesis)' if feature.caption else ""
    groups = [_group_words(*group.split("/", 1)) for group in feature.groups]
    heat = [heat_map(m, thumbnail(image, size)) for m, image in zip(maps, images, strict=True)]
    rows = [
        row_of(
            f"{called}: most active" + (f" in the {groups[0]}" if groups else ""),
            images,
            texts,
            feature.top_ids,
            size=size,
        ),
        row_of("where it is active" + (f": {looks}" if looks else ""), heat, ids=feature.top_ids, size=size),
    ]
    if len(attacks):
        rows.append(row_of(attack_title, attacks, attack_texts, size=size))
    scored = (
        f"score {number(feature.caption_score)}, {number(feature.caption_margin, '.1f')} standard deviations above "
        "the mean of all candidates"
    )
    parts = [
        called + (f" ({clean(feature.tag)})" if feature.tag else ""),
        f"{looks}: {scored}" if looks else "",
        role or (f"splits the {' and the '.join(groups)}" if groups else ""),
        f"to do: {clean(feature.action)}" if feature.action else "",
        note,
    ]
    return Picture(f"features/{feature.feature}", tuple(rows), clean("; ".join(filter(None, parts)), 1000))


def leaf_picture(
    group: GroupReport,
    index: int,
    failures: Sequence[Tensor] | Tensor,
    successes: Sequence[Tensor] | Tensor,
    *,
    failure_texts: Sequence[str] = (),
    success_texts: Sequence[str] = (),
    failure_ids: Sequence[int] = (),
    success_ids: Sequence[int] = (),
    elsewhere: bool = False,
    names: Mapping[int, str] | None = None,
    size: int = SIZE,
) -> Picture:
    """Show what follows a rule: failures, as they come, and correct ones beside them.

    Args:
        group: The group of the tree.
        index: Which of ``group.leaves``.
        failures: Images (C, H, W) of the leaf that failed.
        successes: Images of it that did not, or of the rest of the group.
        failure_texts: Text below each.
        success_texts: Text below each.
        failure_ids: Of the images.
        success_ids: Of the images.
        elsewhere: Whether the successes come from the rest of the group, because the leaf has none.
        names: Feature -> what people call it.
        size: Least side of a thumbnail in pixels.
    """
    leaf, where = group.leaves[index], _group_words(group.grouping, group.class_name)
    rule = with_names(leaf.rule, names or {})
    interval = "" if leaf.interval is None else f" (held out: {number(leaf.interval[0])} to {number(leaf.interval[1])})"
    caption = (
        f"{where}: {rule}; error rate {number(leaf.error_rate)}{interval} of {leaf.size} examples, in the whole group "
        f"{number(group.base_error_rate)}; {number(leaf.error_coverage)} of its failures"
    )
    right = (
        "correct, in the rest of the group: the rule holds for no correct one" if elsewhere else "correct, same rule"
    )
    return Picture(
        f"leaves/{group.grouping}/{tag_part(group.class_name)}/{index}",
        (
            row_of(f"{where}, failures: {rule}", failures, failure_texts, failure_ids, size=size),
            row_of(right, successes, success_texts, success_ids, size=size),
        ),
        clean(caption, 1000),
    )


def _group_words(grouping: str, class_name: str) -> str:
    """What a group is called in a sentence."""
    return f"{grouping} group of {clean(class_name, 80)}"
