"""Pictures that need no fitted model: of findings, and of the failures of each class.

The trainer draws them with its own images, and :func:`~lightning_failures.report.save.save_html` with those of a user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.text import clean, tag_part
from lightning_failures.core.types import IntArray
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.findings import Finding
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.report.example_rows import ExampleLookup
from lightning_failures.report.gallery import Gallery, Picture, Thumbnails, class_picture, make_row
from lightning_failures.report.images import fit_square, square_side
from lightning_failures.report.projection import project

MOST_CARDS = 24
"""Maximum number of classes whose failures are drawn."""

CARD_IMAGES = 8
MOST_THUMBNAILS = 500
THUMBNAIL = 48
"""Side of a thumbnail, in pixels."""

_CARD_SALT = 0xCA2D

Fetch = Callable[[Sequence[int]], Sequence[Tensor]]
"""Returns the images (n, C, H, W) in [0, 1] of n ids."""


def finding_pictures(report: FailureReport, table: ExampleTable | None, fetch: Fetch) -> list[Picture]:
    """Draw failing images of each finding beside right ones of the same classes.

    Args:
        report: Its findings name the images.
        table: The examples, for the texts below the images.
        fetch: Returns images by id.
    """
    lookup = ExampleLookup(table)
    return [_finding_picture(index, found, lookup, fetch) for index, found in enumerate(report.findings)]


def card_pictures(
    report: FailureReport,
    table: ExampleTable | None,
    fetch: Fetch,
    *,
    drawn: Sequence[str] = (),
    limit: int = MOST_CARDS,
) -> list[Picture]:
    """Draw random failures of each class that fails, and its least confident failures.

    Args:
        report: The classes, of which those come first that it pays most to fix.
        table: The examples; None: nothing is drawn.
        fetch: Returns images by id.
        drawn: Names of classes whose least confident images are drawn already.
        limit: Maximum number of classes.
    """
    if table is None:
        return []
    lookup = ExampleLookup(table)
    index_of = {name: index for index, name in enumerate(table.class_names)}
    failing = [entry for entry in sorted(report.classes, key=lambda one: one.rank) if entry.accuracy not in (None, 1.0)]
    pictures = []
    for entry in failing[:limit]:
        mine = (table.labels == index_of.get(entry.name, -1)) & table.failed
        rows = torch.nonzero(mine).flatten().numpy()
        if not len(rows):
            continue
        strips = [("random failures", _random_rows(rows, table))]
        if entry.name not in drawn and table.confidence is not None:
            strips.append(("least confident failures", rows[np.argsort(table.confidence.numpy()[rows], kind="stable")]))
        titled = [(title, table.ids.numpy()[places[:CARD_IMAGES]].tolist()) for title, places in strips]
        pictures.append(
            Picture(
                f"cards/{tag_part(entry.name)}",
                tuple(
                    make_row(title, fetch(ids), [_text(lookup, i, entry.name) for i in ids], ids)
                    for title, ids in titled
                ),
                clean(f"{entry.name}: failures"),
            )
        )
    return pictures


def draw_report(
    report: FailureReport, table: ExampleTable | None, fetch: Fetch, embeddings: Tensor | None = None
) -> Gallery:
    """Draw all pictures of a report that need no fitted model, and thumbnails to browse.

    Args:
        report: The report.
        table: Its examples; None: only the images that the report names.
        fetch: Returns images by id.
        embeddings: (U, D) of the U distinct ids, ascending, for a map; None: there is no map.
    """
    findings = finding_pictures(report, table, fetch)
    named = [entry for entry in sorted(report.classes, key=lambda one: one.rank) if entry.hardest_ids][:MOST_CARDS]
    classes = [_class_picture(entry, ExampleLookup(table), fetch) for entry in named]
    cards = card_pictures(report, table, fetch, drawn=[entry.name for entry in named])
    pictures = (*findings, *classes, *cards)
    return Gallery(pictures, _thumbnails(table, fetch, embeddings), report.epoch, report.global_step)


def _finding_picture(index: int, found: Finding, lookup: ExampleLookup, fetch: Fetch) -> Picture:
    of_class = found.parts[0].class_name if len(found.parts) == 1 else None
    rows = []
    for title, ids in (("wrong", found.failing_ids), ("right, of the same classes", found.right_ids)):
        texts = [_text(lookup, i, of_class) for i in ids]
        rows.append(make_row(title, fetch(ids) if ids else (), texts, list(ids)))
    return Picture(f"findings/{index}", tuple(rows), clean(f"finding {index + 1}: wrong beside right images"))


def _class_picture(entry: ClassReport, lookup: ExampleLookup, fetch: Fetch) -> Picture:
    ends = (entry.hardest_ids, entry.easiest_ids, entry.least_confident_ids)
    images = [fetch(ids) if ids else () for ids in ends]
    texts = [[_text(lookup, i, entry.name) for i in ids] for ids in ends]
    return class_picture(entry, *images, hardest_texts=texts[0], easiest_texts=texts[1], least_confident_texts=texts[2])


def _text(lookup: ExampleLookup, example: int, class_name: str | None) -> str:
    """Return the label and the prediction of an example, for the text below its image."""
    row = lookup.row(example, class_name)
    if row is None:
        return ""
    label, predicted = lookup.class_names(row)
    return f"{clean(label, 40)}\n-> {clean(predicted, 40)}"


def _random_rows(rows: IntArray, table: ExampleTable) -> IntArray:
    """Return rows in an order by the hash of their ids; sources are repeated only when all have been shown."""
    ids = table.ids.numpy()[rows]
    order = np.argsort(stable_hash(ids, _CARD_SALT), kind="stable")
    if table.groups is None:
        return rows[order]
    seen: Counter[int] = Counter()
    repeats = []
    for source in table.groups.numpy()[rows[order]].tolist():
        repeats.append(seen[source])
        seen[source] += 1
    return rows[order][np.argsort(repeats, kind="stable")]


def _thumbnails(table: ExampleTable | None, fetch: Fetch, embeddings: Tensor | None) -> Thumbnails | None:
    """Return thumbnails of a random choice of failures and of as many successes."""
    if table is None or not len(table):
        return None
    failed = table.failed.numpy()
    chosen = [
        ids[np.argsort(stable_hash(ids, _CARD_SALT), kind="stable")][: MOST_THUMBNAILS // 2]
        for ids in (np.unique(table.ids.numpy()[outcome]) for outcome in (failed, ~failed))
    ]
    ids = np.unique(np.concatenate(chosen))
    images = fetch(ids.tolist())
    side = square_side(images, THUMBNAIL)
    places = None
    if embeddings is not None:
        places = project(embeddings[np.searchsorted(np.unique(table.ids.numpy()), ids)])
    squares = torch.stack([fit_square(image, side) for image in images])
    return Thumbnails(torch.from_numpy(ids), squares, places=places)
