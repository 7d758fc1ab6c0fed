"""The pictures of an analysis: structured rows of tiles that each writer lays out in its own way.

A picture is not a bitmap: the HTML page shows its tiles as images with texts below them, whereas TensorBoard and W&B
get :attr:`Picture.image`, in which the texts are painted.

This is the only model of tiles, rows and pictures: ``gallery.json`` stores these records, and the HTML page fills them
with encoded images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from lightning_failures.core.text import clean, number, percent, shorten_caption, tag_part
from lightning_failures.data.report import ClassReport, FeatureReport
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.errors import DataError
from lightning_failures.report.feature_names import with_names
from lightning_failures.report.image_encoding import ImageEncoder, to_png
from lightning_failures.report.images import SIZE, heat_map, image_strip, reduced, stack, thumbnail
from lightning_failures.report.sentences import counterfactual_sentence, leaf_rates
from lightning_failures.report.tables import score, verdict


@dataclass(frozen=True)
class Tile:
    r"""One image with its text.

    Attributes:
        image: (3, h, w) uint8 on the CPU; a large image is reduced to a thumbnail, a small one keeps its size.
        text: Text below the image; ``"\n"`` starts a new line.
        id: Id of the example in the image, or None (feature attacks).
    """

    image: Tensor = field(metadata={"codec": "image"})
    text: str = ""
    id: int | None = None


@dataclass(frozen=True)
class Row:
    """Images that belong together, the most important one first."""

    title: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Picture:
    """One finding in images.

    Attributes:
        tag: Stable name of the finding, the same at every analysis: ``"classes/cat"``, ``"features/17"``,
            ``"leaves/label/cat/0"``.
        rows: At least one row; a row may be empty.
        caption: One line that describes the picture.
        note: What is missing in it, and why; None if nothing is.
    """

    tag: str
    rows: tuple[Row, ...]
    caption: str = ""
    note: str | None = field(default=None, metadata={"omit_none": True})

    @cached_property  # several writers use it
    def image(self) -> Tensor:
        """All rows as one image with titles and texts, (3, H, W) uint8. Must not be modified."""
        return stack([_strip(row) for row in self.rows])

    @cached_property
    def png(self) -> bytes:
        """:attr:`image` as PNG."""
        return to_png(self.image)


@dataclass(frozen=True)
class Thumbnails:
    """A bounded sample of examples for browsing: the table of the HTML page and TensorBoard's projector.

    Attributes:
        ids: (n,) int64, ascending.
        images: (n, 3, s, s) uint8, each scaled to fit and centred on mid-gray.
        embeddings: (n, D) float32 of the encoder of the failure directions, or None. A row of NaN belongs to an example
            that was graded but not embedded (outside of the sample). Not stored in ``gallery.json``.
        places: (n, 2) float32 in [0, 1], the embeddings projected to a plane
            (:func:`~lightning_failures.report.projection.project`); NaN without an embedding. None: there is no map.
    """

    ids: Tensor = field(metadata={"codec": "ids"})
    images: Tensor = field(metadata={"codec": "images"})
    embeddings: Tensor | None = None
    places: Tensor | None = field(default=None, metadata={"codec": "places"})


@dataclass(frozen=True)
class Gallery:
    """All pictures of one analysis; an empty gallery belongs to an analysis without pictures.

    Attributes:
        pictures: In the order in which they are shown.
        thumbnails: Examples for browsing, or None.
        epoch: Epoch of the analysis.
        global_step: Global step of the analysis.
    """

    pictures: tuple[Picture, ...] = ()
    thumbnails: Thumbnails | None = None
    epoch: int | None = None
    global_step: int | None = None

    @property
    def logged(self) -> tuple[Picture, ...]:
        """The pictures for loggers: those of single classes that only the page has room for are left out."""
        return tuple(picture for picture in self.pictures if not picture.tag.startswith("cards/"))

    @cached_property
    def encoder(self) -> ImageEncoder:
        """Encodes the images of the gallery, each once for the file and the page."""
        return ImageEncoder()


def _strip(row: Row) -> Tensor:
    """Return a row as one image; without any text, no room is left for texts."""
    texts = [tile.text for tile in row.tiles]
    return image_strip([tile.image for tile in row.tiles], texts if any(texts) else (), title=row.title)


def make_row(
    title: str,
    images: Sequence[Tensor] | Tensor,
    texts: Sequence[str] = (),
    ids: Sequence[int] = (),
    *,
    size: int = SIZE,
) -> Row:
    """Reduce images to thumbnails and put them into a row.

    Args:
        title: One line.
        images: n images (C, H, W).
        texts: n texts, or none.
        ids: n example ids, or none.
        size: Images whose longer side exceeds 2 size pixels are reduced to that.

    Raises:
        DataError: The number of texts or ids differs from that of the images.
    """
    n = len(images)
    for name, values in (("texts", texts), ("ids", ids)):
        if len(values) not in (0, n):
            raise DataError(f"make_row: {name} must have as many items as images, {n}, or none; got {len(values)}")
    return Row(
        title,
        tuple(
            Tile(reduced(image, size), texts[i] if texts else "", ids[i] if ids else None)
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
    r"""Return the hardest images of a class, its easiest and its least confident ones, the most extreme on the left.

    Titles include the best caption of each end if a pattern was found; without a pattern captions describe noise.

    Args:
        entry: The class; its ``hardest_ids``, ``easiest_ids`` and ``least_confident_ids`` name the images.
        hardest: Images (C, H, W), from the lowest decision value up.
        easiest: Images from the highest decision value down.
        least_confident: Images from the least confidence in the true class up; they differ from the hardest if
            failures share a pattern (Jain et al., figure 11). Empty: the row is left out.
        hardest_texts: Text below each hardest image: decision value, prediction. ``"\n"`` starts a new line.
        easiest_texts: Text below each easiest image.
        least_confident_texts: Text below each least confident image.
        size: Least side of a thumbnail in pixels.
    """
    name = clean(entry.name, 80)

    def title(end: str, captions: Sequence[str]) -> str:
        return f"{name}, {end}: {captions[0]}" if entry.pattern and captions else f"{name}, {end}"

    evidence = f"p {verdict(entry)}, CV score {score(entry)}" if entry.pattern else verdict(entry)
    # (title, images, texts, ids) of each row
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
            make_row(title, images, texts, ids if len(ids) == len(images) else (), size=size)
            for title, images, texts, ids in ends
        ),
        f"{name}: error rate {percent(None if entry.accuracy is None else 1 - entry.accuracy)}; {evidence}",
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
    """Return what activates a feature: the most activating images, heat maps, and feature attacks.

    Args:
        feature: The feature; ``top_ids`` are the ids of the images, which come from the first of its ``groups``.
        images: n images (C, H, W) as the encoder saw them, the most activating first.
        maps: n maps (h, w) of the feature.
        attacks: The n images after a feature attack (C, H, W), or none.
        texts: Text below each image.
        attack_texts: Text below each attacked image.
        attack_title: Title of the row of attacked images.
        role: How the feature relates to failures; by default the groups that it splits.
        note: Anything else to know, such as why there are no attacks.
        size: Least side of a thumbnail in pixels.

    Source: Singla et al., Barlow (CVPR 2021), section 4: the three visualisations of a feature.
    """
    name = f"feature {feature.feature}" + (f' "{clean(feature.name, 60)}"' if feature.name else "")
    looks = f'looks like "{shorten_caption(feature.caption)}" (hypothesis)' if feature.caption else ""
    groups = [_group_name(*group.split("/", 1)) for group in feature.groups]
    heat = [heat_map(m, thumbnail(image, size)) for m, image in zip(maps, images, strict=True)]
    rows = [
        make_row(
            f"{name}: most active" + (f" in the {groups[0]}" if groups else ""),
            images,
            texts,
            feature.top_ids,
            size=size,
        ),
        make_row("where it is active" + (f": {looks}" if looks else ""), heat, ids=feature.top_ids, size=size),
    ]
    if len(attacks):
        rows.append(make_row(attack_title, attacks, attack_texts, size=size))
    # the caption: name and tag, hypothesis, role, what to do
    scored = (
        f"score {number(feature.caption_score)}, {number(feature.caption_margin, '.1f')} standard deviations above "
        "the mean of all candidates"
    )
    parts = [
        name + (f" ({clean(feature.tag)})" if feature.tag else ""),
        f"{looks}: {scored}" if looks else "",
        role or (f"splits the {' and the '.join(groups)}" if groups else ""),
        f"to do: {clean(feature.action)}" if feature.action else "",
        "" if feature.counterfactual is None else counterfactual_sentence(feature.counterfactual).removesuffix("."),
        note,
    ]
    caption = clean("; ".join(filter(None, parts)), 1000)
    return Picture(f"features/{feature.feature}", tuple(rows), caption, note or None)


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
    """Return examples of a leaf: failures in the order given, and correct predictions for comparison.

    Args:
        group: The group of the tree.
        index: Index of the leaf in ``group.leaves``.
        failures: Misclassified images (C, H, W) of the leaf.
        successes: Correctly classified images of the leaf, or of the rest of the group.
        failure_texts: Text below each failure.
        success_texts: Text below each success.
        failure_ids: Ids of the failures.
        success_ids: Ids of the successes.
        elsewhere: Whether the successes come from the rest of the group because the leaf has none.
        names: User-given name of each feature.
        size: Least side of a thumbnail in pixels.
    """
    leaf, where = group.leaves[index], _group_name(group.grouping, group.class_name)
    rule = with_names(leaf.rule, names or {})
    caption = (
        f"{where}: {rule}; {leaf.size} examples; {leaf_rates(leaf)}; base error rate of the group "
        f"{percent(group.base_error_rate)}"
    )
    right = (
        "correct, from the rest of the group: no correct example follows the rule"
        if elsewhere
        else "correct, same rule"
    )
    return Picture(
        f"leaves/{group.grouping}/{tag_part(group.class_name)}/{index}",
        (
            make_row(f"{where}, failures: {rule}", failures, failure_texts, failure_ids, size=size),
            make_row(right, successes, success_texts, success_ids, size=size),
        ),
        clean(caption, 1000),
    )


def pictures_by_id(gallery: Gallery | None) -> dict[int, Tensor]:
    """Return a picture (3, h, w) uint8 of each example that a gallery shows, by its id; thumbnails come second.

    Pictures of features of the robust encoder are left out: some of their tiles are heat maps.
    """
    if gallery is None:
        return {}
    found: dict[int, Tensor] = {}
    if gallery.thumbnails is not None:
        found = dict(zip(gallery.thumbnails.ids.tolist(), gallery.thumbnails.images, strict=True))
    for picture in gallery.pictures:
        if picture.tag.startswith(("classes/", "sparse/")):
            tiles = [tile for row in picture.rows for tile in row.tiles]
            found |= {tile.id: tile.image for tile in tiles if tile.id is not None}
    return found


def _group_name(grouping: str, class_name: str) -> str:
    """Return the name of a group as part of a sentence."""
    return f"{grouping} group of {clean(class_name, 80)}"
