"""The verdict at the top of the page: what is wrong, how sure, what next; or why nothing was found."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from lightning_failures.core.text import clean
from lightning_failures.data.findings import Finding
from lightning_failures.data.report import FailureReport
from lightning_failures.report.example_rows import ExampleLookup
from lightning_failures.report.findings import (
    NextStep,
    NothingFound,
    cause_sentence,
    confidence_sentence,
    finding_sentence,
    next_step,
    nothing_found,
)
from lightning_failures.report.html.pictures import PageTile, PictureIndex
from lightning_failures.report.run_folder import Run

MAX_PARTS = 60
"""Most classes of a finding in its table."""


@dataclass(frozen=True)
class FindingView:
    """One finding of the page.

    Attributes:
        index: Its index in the report.
        found: The finding.
        sentence: What is wrong.
        statistics: The statistics behind how sure it is.
        cause: The likely cause; empty without a diagnosis.
        step: What to do next.
        wrong: Some failing images.
        right: Some images beside them that the model is right on.
        anchors: Index in the report of the class of each part that the page lists.
    """

    index: int
    found: Finding
    sentence: str
    statistics: str
    cause: str
    step: NextStep
    wrong: tuple[PageTile, ...]
    right: tuple[PageTile, ...]
    anchors: tuple[int | None, ...]


def finding_views(run: Run, pictures: PictureIndex) -> tuple[FindingView, ...]:
    """Return the findings of the report of a run, with their pictures."""
    report = run.report
    names = [entry.name for entry in report.classes]
    index_of = {name: index for index, name in enumerate(names)}
    folder = str(run.folder.parent if run.folder.name == "failures" else run.folder)
    views = []
    for index, found in enumerate(report.findings):
        wrong, right = _strips(index, found, pictures)
        views.append(
            FindingView(
                index=index,
                found=found,
                sentence=finding_sentence(found, names),
                statistics=confidence_sentence(found),
                cause=cause_sentence(found),
                step=next_step(found, folder),
                wrong=wrong,
                right=right,
                anchors=tuple(index_of.get(part.class_name) for part in found.parts[:MAX_PARTS]),
            )
        )
    return tuple(views)


def why_nothing(report: FailureReport) -> NothingFound | None:
    """Return why a report has no findings; None if it has some."""
    return None if report.findings else nothing_found(report)


def _strips(index: int, found: Finding, pictures: PictureIndex) -> tuple[tuple[PageTile, ...], tuple[PageTile, ...]]:
    """Return the failing and the right images of a finding, as far as they were drawn."""
    classes = [part.class_name for part in found.parts]
    shown: dict[int, PageTile] = {}
    for picture in pictures.take(f"findings/{index}"):
        for row in picture.rows:
            for tile in row.tiles:
                if isinstance(tile, PageTile) and tile.id is not None:
                    shown[tile.id] = _with_row(tile, classes, pictures.lookup)
    return _chosen(found.failing_ids, shown), _chosen(found.right_ids, shown)


def _chosen(ids: Sequence[int], shown: dict[int, PageTile]) -> tuple[PageTile, ...]:
    return tuple(shown[example] for example in ids if example in shown)


def _with_row(tile: PageTile, classes: Collection[str], lookup: ExampleLookup) -> PageTile:
    """Return a tile with the row of its example: in a multilabel task, that of one of the classes of the finding."""
    example = -1 if tile.id is None else tile.id
    rows = [row for name in classes if (row := lookup.row(example, name)) is not None]
    of_label = [row for row in rows if lookup.class_names(row)[0] in classes]
    row = of_label[0] if of_label else lookup.row(example)
    if row is None:
        return tile
    label, predicted = (clean(one, 80) for one in lookup.class_names(row))
    alt = f"example {example}: {label}, predicted {predicted}"
    known = replace(tile, row=row, predicted=predicted, alt=alt, label=label, lines=(label,))
    return replace(known, failed=lookup.failed(row), has_confidence=lookup.has_confidence)
