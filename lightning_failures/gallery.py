"""The pictures of an analysis: what is shown, in rows of tiles, for any sink to lay out as it likes.

A picture is structured, not a bitmap: the HTML report shows its tiles as images with texts beside them, TensorBoard and
W&B get :attr:`Picture.image`, in which texts are painted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_failures.errors import DataError
from lightning_failures.records import ClassReport, GroupReport
from lightning_failures.text import clean, number, score, tag_part, verdict
from lightning_failures.visuals import SIZE, heat_map, image_strip, stack, thumbnail

__all__ = ["Gallery", "Picture", "Row", "Thumbnails", "Tile", "class_picture", "row_of", "rule_picture"]


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
        tag: Where it belongs, the same at every analysis: ``"classes/cat"``, ``"rules/label/cat/0"``,
            ``"features/17"``, ``"leaves/label/cat/0"``.
        rows: At least one; a row may be empty.
        caption: One line for people.
    """

    tag: str
    rows: tuple[Row, ...]
    caption: str = ""

    @property
    def image(self) -> Tensor:
        """All rows in one image, with their titles and texts: (3, H, W) uint8."""
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
        embeddings: (n, D) float32 of the failure directions' encoder, or None.
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
    *,
    hardest_texts: Sequence[str] = (),
    easiest_texts: Sequence[str] = (),
    size: int = SIZE,
) -> Picture:
    r"""Show the hardest images of a class above its easiest, the most extreme on the left.

    The titles bear the best caption of each end where a pattern was found, and none where it would describe noise.

    Args:
        entry: The class; its ``hardest_ids`` and ``easiest_ids`` name the images.
        hardest: Images (C, H, W), from the lowest decision value up.
        easiest: Images from the highest decision value down.
        hardest_texts: Text below each image: decision value, prediction. ``"\n"`` starts a new line.
        easiest_texts: As above.
        size: Least side of a thumbnail in pixels.
    """
    name = clean(entry.name, 80)

    def title(end: str, captions: Sequence[str]) -> str:
        return f"{name}, {end}: {captions[0]}" if entry.pattern and captions else f"{name}, {end}"

    told = f"p {verdict(entry)}, CV score {score(entry)}" if entry.pattern else verdict(entry)
    ends = (
        ("hardest", entry.hardest_captions, hardest, hardest_texts, entry.hardest_ids),
        ("easiest", entry.easiest_captions, easiest, easiest_texts, entry.easiest_ids),
    )
    return Picture(
        f"classes/{tag_part(entry.name)}",
        tuple(
            row_of(title(end, captions), images, texts, ids if len(ids) == len(images) else (), size=size)
            for end, captions, images, texts, ids in ends
        ),
        f"{name}: error rate {number(None if entry.accuracy is None else 1 - entry.accuracy)}; {told}",
    )


def rule_picture(
    group: GroupReport,
    index: int,
    images: Sequence[Tensor] | Tensor,
    maps: Sequence[Tensor] | Tensor,
    *,
    feature: str = "",
    texts: Sequence[str] = (),
    ids: Sequence[int] = (),
    size: int = SIZE,
) -> Picture:
    """Show images above the heat maps of the feature that a rule splits on.

    Args:
        group: The group of the tree.
        index: Which of ``group.leaves``.
        images: n images (C, H, W), as a rule the most activating ones.
        maps: n maps (h, w) of the feature, one an image.
        feature: Name of the feature, for the title.
        texts: Text below each image.
        ids: Of the images.
        size: Least side of a thumbnail in pixels.
    """
    leaf, name = group.leaves[index], clean(group.class_name, 80)
    heat = [heat_map(m, thumbnail(image, size)) for m, image in zip(maps, images, strict=True)]
    caption = (
        f"{name}, {group.grouping} group: {leaf.rule}; error rate {number(leaf.error_rate)}, "
        f"error coverage {number(leaf.error_coverage)}"
    )
    return Picture(
        f"rules/{group.grouping}/{tag_part(group.class_name)}/{index}",
        (
            row_of(caption, images, texts, ids, size=size),
            row_of(f"where {feature or 'the feature'} is active", heat, ids=ids, size=size),
        ),
        clean(caption),
    )
