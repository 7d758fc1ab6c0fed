"""The pictures of the page: taken by tag from the gallery, encoded, with the rows of their examples in the table."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from lightning_failures.core.text import clean, tag_part
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.report.example_rows import ExampleLookup
from lightning_failures.report.gallery import Gallery, Picture, Row, Tile
from lightning_failures.report.html.images import ImageBudget

MAX_TILES = 12
SMALL = 64
"""Pixels of the longer side below which an image is enlarged without smoothing."""


@dataclass(frozen=True)
class PageTile(Tile):
    """A tile of the gallery as the page shows it.

    Attributes:
        uri: The image as a data URI.
        alt: Text in place of the image.
        lines: Text below the image, if the example is not in the table of examples.
        row: Index in the table of examples, or None; with it the template shows the numbers of the example.
        predicted: Name of the predicted class, or "right" or "wrong" without one, if there is a row.
        has_confidence: Whether the row has a confidence.
        label: Name of the true class, if there is a row.
        failed: Whether the model is wrong on the example; None without a row.
    """

    uri: str = ""
    alt: str = ""
    lines: tuple[str, ...] = ()
    row: int | None = None
    predicted: str | None = None
    has_confidence: bool = True
    label: str = ""
    failed: bool | None = None

    @property
    def outcome(self) -> str:
        """The class of the style: "is-wrong", "is-right", or empty if it is not known."""
        return "" if self.failed is None else "is-wrong" if self.failed else "is-right"

    @property
    def styles(self) -> str:
        """The classes of the style of the image: its outcome, and "small" if its pixels shall stay sharp."""
        small = "small" if max(self.image.shape[1:]) < SMALL else ""
        return " ".join(one for one in (self.outcome, small) if one)


class PictureIndex:
    """The pictures of a gallery by tag. Each is taken once; images are encoded until the budget is used up.

    Args:
        gallery: The pictures.
        lookup: Finds the rows of examples in the table.
        limit: Characters of all encoded images.
    """

    def __init__(self, gallery: Gallery, lookup: ExampleLookup, limit: int) -> None:
        self._pictures: dict[str, list[Picture]] = defaultdict(list)
        for picture in gallery.pictures:
            self._pictures[picture.tag].append(picture)
        self.lookup = lookup
        self.budget = ImageBudget(limit, gallery.encoder)

    def take(self, tag: str, class_name: str | None = None) -> tuple[Picture, ...]:
        """Return the pictures with a tag; ``class_name`` selects the rows of their examples in the table."""
        return tuple(self._for_page(picture, class_name) for picture in self._pictures.pop(tag, ()))

    def take_leaves(self, group: GroupReport) -> dict[int, list[Picture]]:
        """Return the pictures of the leaves of a group, by the index of the leaf."""
        part = f"{group.grouping}/{tag_part(group.class_name)}"
        by_leaf = {
            leaf: [*self.take(f"leaves/{part}/{leaf}"), *self.take(f"rules/{part}/{leaf}")]
            for leaf in range(len(group.leaves))
        }
        return {leaf: pictures for leaf, pictures in by_leaf.items() if pictures}

    def take_rest(self) -> tuple[Picture, ...]:
        """Return pictures of no section; those of trees that are not shown are left out."""
        sections = ("findings", "classes", "rules", "leaves", "features", "sparse")
        tags = [tag for tag in self._pictures if tag.split("/")[0] not in sections]
        return tuple(picture for tag in tags for picture in self.take(tag))

    def _for_page(self, picture: Picture, class_name: str | None) -> Picture:
        """Return the picture with cleaned texts and encoded images; empty rows are left out."""
        rows = []
        for row in picture.rows:
            title = clean(row.title, 160)
            tiles = [self._tile(tile, title, class_name) for tile in row.tiles[:MAX_TILES]]
            encoded = tuple(tile for tile in tiles if tile is not None)
            if encoded:
                rows.append(Row(title, encoded))
        return replace(picture, rows=tuple(rows), caption=clean(picture.caption, 300))

    def _tile(self, tile: Tile, title: str, class_name: str | None) -> PageTile | None:
        # the tile of an example in the table shows its numbers, any other tile its own text
        uri = self.budget.add(tile.image)
        if uri is None:
            return None
        name = title if tile.id is None else f"{title}: example {tile.id}"
        row = None if tile.id is None or class_name is None else self.lookup.row(tile.id, class_name)
        if row is None:
            lines = tuple(clean(line, 60) for line in tile.text.split("\n")[:4] if line.strip())
            return PageTile(tile.image, tile.text, tile.id, uri=uri, alt=", ".join([name, *lines]), lines=lines)
        label, predicted = (clean(one, 80) for one in self.lookup.class_names(row))
        alt = f"{name}, {label}, predicted {predicted}"
        known = PageTile(tile.image, tile.text, tile.id, uri=uri, alt=alt, row=row, predicted=predicted, label=label)
        failed = self.lookup.failed(row)
        return replace(known, has_confidence=self.lookup.has_confidence, failed=failed)
