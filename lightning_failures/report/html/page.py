"""What the page shows, chosen and bounded: the model behind the templates. Numbers stay where they are, in the records.

A page for ten classes shows everything; one for a thousand shows the worst, and says what it leaves out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lightning_failures.core.text import clean, tag_part
from lightning_failures.data.report import ClassReport, FailureReport, FeatureReport, GroupReport, ModeReport
from lightning_failures.report.diary import histories, last_entry
from lightning_failures.report.feature_names import names_in, with_names
from lightning_failures.report.gallery import Gallery, Picture, Tile
from lightning_failures.report.html import charts
from lightning_failures.report.html.browse import Lookup, browsed
from lightning_failures.report.html.figures import Figures
from lightning_failures.report.html.images import ImageBudget
from lightning_failures.report.html.tree import Branch, feature_name, outline
from lightning_failures.report.interventions import intervention_lines
from lightning_failures.report.run_folder import Run
from lightning_failures.report.sentences import group_sentence, trust_sentence
from lightning_failures.report.tables import rank_classes

CLASS_ROWS = 1000
CARDS = 24
TREES = 24
GROUP_ROWS = 400
MODE_ROWS = 100
FEATURES = 16
VALUES = 12
TILES = 12
LINES = 200
PICTURE_CHARACTERS = 2_200_000
"""Of all pictures but the table of examples; with it, and with what draws the charts, a page stays below 5 MB."""


@dataclass(frozen=True)
class TileView:
    """One image.

    Attributes:
        uri: Its data.
        alt: What it shows, in words.
        lines: Text below it.
        row: Of the table of examples, or None; then the template adds what is known of it.
        predicted: Name of the class that was predicted, where there is a row.
    """

    uri: str
    alt: str
    lines: tuple[str, ...] = ()
    row: int | None = None
    predicted: str | None = None


@dataclass(frozen=True)
class RowView:
    """Images that belong together."""

    title: str
    tiles: tuple[TileView, ...]


@dataclass(frozen=True)
class PictureView:
    """One picture of the gallery."""

    caption: str
    rows: tuple[RowView, ...]


@dataclass(frozen=True)
class ClassRow:
    """A class in the ranked table: its place in the report, and in that of the previous analysis."""

    index: int
    entry: ClassReport
    sentence: str
    before: int | None
    card: bool


@dataclass(frozen=True)
class Card:
    """Everything on one class."""

    index: int
    entry: ClassReport
    sentence: str
    pictures: tuple[PictureView, ...]
    curve: list[dict[str, Any]]
    trees: tuple[tuple[int, str], ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class TreeView:
    """A tree that was found to hold, as an outline, with the pictures of its leaves."""

    index: int
    group: GroupReport
    sentence: str
    root: Branch | None
    pictures: dict[int, list[PictureView]]


@dataclass(frozen=True)
class FeatureView:
    """A feature that rules mention."""

    index: int
    feature: FeatureReport
    title: str
    pictures: tuple[PictureView, ...]


@dataclass(frozen=True)
class ModeRow:
    """A failure mode when last it was told of, where that stands, and all places where it was: (analysis, place).

    ``now``: whether the last analysis that was entered into the diary tells of it.
    """

    at: str
    mode: ModeReport
    status: str
    past: tuple[tuple[int, int], ...]
    now: bool


@dataclass(frozen=True)
class Page:
    """All that the templates need; see the module.

    ``told``: place in the history of the report that the diary is of, where that is not the report of the page.
    """

    title: str
    report: FailureReport
    figures: Figures
    history: tuple[FailureReport, ...]
    before: int | None
    classes: tuple[ClassRow, ...]
    cards: tuple[Card, ...]
    trees: tuple[TreeView, ...]
    no_trees: tuple[tuple[int, GroupReport, str], ...]
    groups: tuple[tuple[int, GroupReport], ...]
    features: tuple[FeatureView, ...]
    modes: tuple[ModeRow, ...]
    told: int | None
    interventions: tuple[tuple[str, str], ...]
    more: tuple[PictureView, ...]
    examples: dict[str, Any]
    charts: dict[str, Any]
    caveats: tuple[str, ...]
    omitted: dict[str, int] = field(default_factory=dict)


def view(run: Run) -> Page:
    """Choose what is shown of a run."""
    report, history = run.report, run.history or (run.report,)
    table = run.table if run.table is not None else report.table
    gallery = run.gallery or Gallery()
    shelf = PictureIndex(gallery, Lookup(table))
    before = len(history) - 2 if len(history) > 1 else None

    named, names = {feature.feature: feature for feature in report.features}, _short_names(report)
    groups = _ranked_groups(report)
    drawn = [(index, group) for index, group in groups if group.pattern and group.skipped is None][:TREES]
    ranked = _ranked_classes(report)
    cards = _cards(report, ranked, shelf, dict(drawn))
    trees = tuple(
        TreeView(index, group, with_names(group_sentence(group), names), outline(group, named), shelf.leaves(group))
        for index, group in drawn
    )
    features = tuple(
        FeatureView(index, feature, feature_name(feature.feature, feature), shelf.take(f"features/{feature.feature}"))
        for index, feature in enumerate(report.features[:FEATURES])
    )
    more = shelf.rest()
    without = [(i, g, group_sentence(g)) for i, g in groups if (i, g) not in drawn]
    examples = browsed(table, gallery.thumbnails, report)
    entered = last_entry(history)
    modes = _modes(report, history)
    diary = charts.diary_rows(history)
    scatter = charts.scatter_rows(report)
    return Page(
        title=_title(run),
        report=report,
        figures=Figures({"report": report, "history": history, "examples": table}),
        history=history,
        before=before,
        classes=_class_rows(ranked, history[before] if before is not None else None, {card.index for card in cards}),
        cards=cards,
        trees=trees,
        no_trees=tuple(without[:LINES]),
        groups=tuple(groups[:GROUP_ROWS]),
        features=features,
        modes=modes[:MODE_ROWS],
        told=next((place for place, one in enumerate(history) if one is entered and one is not report), None),
        interventions=_interventions(report),
        more=more,
        examples=examples,
        charts={
            "scatter": charts.scatter(scatter) if scatter else None,
            "diary": charts.diary(diary) if diary else None,
            "curve": charts.curve([]) if any(card.curve for card in cards) else None,
            "curves": {str(card.index): card.curve for card in cards if card.curve},
        },
        caveats=tuple(clean(note, 500) for note in (*report.notes, *run.notes)[:LINES]),
        omitted={
            "classes": max(len(report.classes) - CLASS_ROWS, 0),
            "cards": max(len(report.classes) - len(cards), 0),
            "no_trees": max(len(without) - LINES, 0),
            "groups": max(len(groups) - GROUP_ROWS, 0),
            "features": max(len(report.features) - FEATURES, 0),
            "modes": max(len(modes) - MODE_ROWS, 0),
            "images": shelf.album.omitted,
        },
    )


def _short_names(report: FailureReport) -> dict[int, str]:
    return {number: clean(name, 60) for number, name in names_in(report.features).items()}


def _title(run: Run) -> str:
    """The last two parts of the log folder."""
    parts = [part for part in map(clean, run.folder.parts) if part not in ("", "/", ".", "..", "failures")]
    return "/".join(parts[-2:]) or "a run"


class PictureIndex:
    """The pictures of a gallery by tag, each taken once, encoded as long as there is room."""

    def __init__(self, gallery: Gallery, lookup: Lookup) -> None:
        self._pictures: dict[str, list[Picture]] = defaultdict(list)
        for picture in gallery.pictures:
            self._pictures[picture.tag].append(picture)
        self._lookup = lookup
        self.album = ImageBudget(PICTURE_CHARACTERS)

    def take(self, tag: str, class_name: str | None = None) -> tuple[PictureView, ...]:
        """Those with a tag; ``class_name`` tells whose rows of the table their examples are."""
        return tuple(self._shown(picture, class_name) for picture in self._pictures.pop(tag, ()))

    def leaves(self, group: GroupReport) -> dict[int, list[PictureView]]:
        """Those of the leaves of a group, by leaf."""
        part = f"{group.grouping}/{tag_part(group.class_name)}"
        found = {
            leaf: [*self.take(f"leaves/{part}/{leaf}"), *self.take(f"rules/{part}/{leaf}")]
            for leaf in range(len(group.leaves))
        }
        return {leaf: pictures for leaf, pictures in found.items() if pictures}

    def rest(self) -> tuple[PictureView, ...]:
        """What no section has taken, rules and leaves of trees that are not shown apart."""
        tags = [tag for tag in self._pictures if tag.split("/")[0] not in ("classes", "rules", "leaves", "features")]
        return tuple(shown for tag in tags for shown in self.take(tag))

    def _shown(self, picture: Picture, class_name: str | None) -> PictureView:
        rows = []
        for row in picture.rows:
            title = clean(row.title, 160)
            tiles = [self._tile(tile, title, class_name) for tile in row.tiles[:TILES]]
            rows.append(RowView(title, tuple(tile for tile in tiles if tile is not None)))
        return PictureView(clean(picture.caption, 300), tuple(row for row in rows if row.tiles))

    def _tile(self, tile: Tile, title: str, class_name: str | None) -> TileView | None:
        uri = self.album.add(tile.image)
        if uri is None:
            return None
        lines = tuple(clean(line, 60) for line in tile.text.split("\n")[:4] if line.strip())
        which = title if tile.id is None else f"{title}: example {tile.id}"
        row = None if tile.id is None or class_name is None else self._lookup.row(tile.id, class_name)
        if row is None:
            return TileView(uri, ", ".join([which, *lines]), lines)
        label, predicted = self._lookup.names(row)
        return TileView(uri, f"{which}, {label}, predicted {predicted}", (), row, predicted)


def _ranked_classes(report: FailureReport) -> list[tuple[int, ClassReport]]:
    places = {id(entry): index for index, entry in enumerate(report.classes)}
    return [(places[id(entry)], entry) for entry in rank_classes(report)]


def _ranked_groups(report: FailureReport) -> list[tuple[int, GroupReport]]:
    """Those with a pattern first, then by the gain; those that were not judged last."""

    def key(item: tuple[int, GroupReport]) -> tuple[bool, bool, float]:
        group = item[1]
        return not group.pattern, group.skipped is not None, -(group.heldout_aler_minus_ber or 0.0)

    return sorted(enumerate(report.groups), key=key)


def _class_rows(
    ranked: Iterable[tuple[int, ClassReport]], before: FailureReport | None, cards: set[int]
) -> tuple[ClassRow, ...]:
    places = {} if before is None else {entry.name: index for index, entry in enumerate(before.classes)}
    return tuple(
        ClassRow(index, entry, _first(trust_sentence(entry), index in cards), places.get(entry.name), index in cards)
        for index, entry in list(ranked)[:CLASS_ROWS]
    )


def _first(sentences: str, more_below: bool) -> str:
    """The first sentence where a card has all."""
    return sentences.split(". ", 1)[0].removesuffix(".") + "." if more_below else sentences


def _cards(
    report: FailureReport, ranked: list[tuple[int, ClassReport]], shelf: PictureIndex, trees: dict[int, GroupReport]
) -> tuple[Card, ...]:
    """The worst classes that have something to show, those with a pattern first."""
    worth = [(index, entry) for index, entry in ranked if entry.cv_score is not None or entry.base_error_rate]
    worth.sort(key=lambda item: not item[1].pattern)
    chosen = {index for index, _ in worth[:CARDS]}
    by_name: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index, group in trees.items():
        by_name[group.class_name].append((index, group.grouping))
    return tuple(
        Card(
            index=index,
            entry=entry,
            sentence=trust_sentence(entry),
            pictures=shelf.take(f"classes/{tag_part(entry.name)}", entry.name),
            curve=charts.curve_rows(entry),
            trees=tuple(sorted(by_name[entry.name], key=lambda tree: tree[1])),
            values=_values(entry),
        )
        for index, entry in ranked
        if index in chosen
    )


def _values(entry: ClassReport) -> tuple[int, ...]:
    """Places of the values of metadata that the flagged examples have most beyond all of the class."""

    def lift(place: int) -> float:
        value = entry.enrichment[place]
        low = value.share_of_flagged_interval[0] if value.share_of_flagged_interval else 0.0
        return -(low / value.share if value.share else 0.0)

    return tuple(sorted(range(len(entry.enrichment)), key=lift)[:VALUES])


def _modes(report: FailureReport, history: tuple[FailureReport, ...]) -> tuple[ModeRow, ...]:
    past: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for analysis, earlier in enumerate(history):
        for place, mode in enumerate(earlier.modes):
            past[mode.name].append((analysis, place))
    last = last_entry(history)
    rows = []
    for told in histories(history):
        analysis, place = past[told.name][-1]
        now = history[analysis] is last
        at = f"report/modes/{place}" if history[analysis] is report else f"history/{analysis}/modes/{place}"
        status = told.status if now or told.status == "cured" else "missing"
        rows.append(ModeRow(at, history[analysis].modes[place], status, tuple(past[told.name]), now))
    return tuple(sorted(rows, key=lambda row: (not row.now, -row.mode.size)))


def _interventions(report: FailureReport) -> tuple[tuple[str, str], ...]:
    """The outcome in a word, and all in a sentence."""
    found = []
    for entry, line in zip(report.interventions, intervention_lines(report), strict=True):
        verdict = entry.get("verdict", "not measured")
        outcome = verdict.get("outcome", "") if isinstance(verdict, dict) else verdict
        found.append((clean(str(outcome), 20), clean(line, 2000)))
    return tuple(found[-LINES:])
