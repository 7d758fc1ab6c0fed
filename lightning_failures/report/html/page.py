"""The content of the page, selected and bounded: the model behind the templates.

Numbers are not copied; templates read them from the records by path (:mod:`lightning_failures.report.html.figures`).
A page for ten classes shows everything; one for a thousand shows the worst, and says how many it leaves out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_failures.analysis.slices import lower_end
from lightning_failures.core.text import clean, tag_part
from lightning_failures.data.grouping import LABEL, grouping_named
from lightning_failures.data.report import ClassReport, FailureReport, FeatureReport, ModeReport, SliceReport
from lightning_failures.data.study_scores import StudyReport
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.diary import histories, is_unjudged, last_diary_entry
from lightning_failures.report.example_rows import ExampleLookup
from lightning_failures.report.feature_names import names_in, with_names
from lightning_failures.report.findings import (
    NothingFound,
    class_confidence,
    class_words,
    mostly_mistaken_for,
)
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.html.browse import browsing_data
from lightning_failures.report.html.charts import CHARTS, CLASS_CHARTS, Chart, ClassChart, Rows
from lightning_failures.report.html.figures import Figures
from lightning_failures.report.html.matrix import ConfusionMatrix, confusion_matrix
from lightning_failures.report.html.pictures import PictureIndex
from lightning_failures.report.html.sparse import SparseView, sparse_view
from lightning_failures.report.html.tree import Branch, feature_name, group_title, outline
from lightning_failures.report.html.verdict import FindingView, finding_views, why_nothing
from lightning_failures.report.interventions import intervention_lines
from lightning_failures.report.method_comparison import MethodComparison, compare_methods
from lightning_failures.report.run_folder import Run, earlier_tables
from lightning_failures.report.sentences import (
    counterfactual_sentence,
    diagnosis_sentence,
    group_sentence,
    shared_sentence,
    trust_sentence,
)
from lightning_failures.report.slices import significant_slices
from lightning_failures.report.tables import class_names, rank_classes

MAX_CLASS_ROWS = 1000
MAX_CARDS = 24
MAX_TREES = 24
MAX_GROUP_ROWS = 400
MAX_MODE_ROWS = 100
MAX_FEATURES = 16
MAX_VALUES = 12
MAX_METHOD_CAPTIONS, MAX_METHOD_VALUES = 3, 4
MAX_SLICES = 24
MAX_LINES = 200
PICTURE_CHARACTERS = 1_550_000
"""Budget of all pictures except the table of examples; with that table and the chart library a page is below 5 MB."""


@dataclass(frozen=True)
class ClassRow:
    """A class in the ranked table.

    Attributes:
        index: Index of the class in the report.
        entry: The class.
        sentence: How far to trust the finding.
        words: What the failing images have in common, in words; empty where nothing is known.
        mistaken_for: The class that the failures are most often mistaken for; empty if it is not known.
        sure: How sure the finding is, as a word.
        before: Index of the class in the previous report, or None.
        group: Index of the label group of the class in the report, or None.
        card: Whether the page has a card for the class.
    """

    index: int
    entry: ClassReport
    sentence: str
    words: str
    mistaken_for: str
    sure: str
    before: int | None
    group: int | None
    card: bool


@dataclass(frozen=True)
class Card:
    """All details of one class.

    Attributes:
        index: Index of the class in the report.
        entry: The class.
        sentence: How far to trust the finding.
        diagnosis: The kind of failure; empty if the class is not diagnosed.
        pictures: Pictures of the class.
        open: Whether the card is open at first: one of the first classes of a finding.
        charts: Rows of each chart in :data:`~lightning_failures.report.html.charts.CLASS_CHARTS` that has any.
        trees: (index, grouping) of the trees of the class that are shown.
        values: Indices of the values of metadata that are shown.
        slices: (path, slice) of the slices that are shown.
    """

    index: int
    entry: ClassReport
    sentence: str
    diagnosis: str
    pictures: tuple[Picture, ...]
    open: bool
    charts: dict[str, Rows]
    trees: tuple[tuple[int, str], ...]
    values: tuple[int, ...]
    slices: tuple[tuple[str, SliceReport], ...]


@dataclass(frozen=True)
class TreeView:
    """A tree with a pattern: its index in the report, its outline, and the pictures of its leaves by leaf."""

    index: int
    group: GroupReport
    sentence: str
    root: Branch | None
    pictures: dict[int, list[Picture]]

    @property
    def title(self) -> str:
        """Name of the group, such as "missed seven" or "called seven"."""
        return group_title(self.group.grouping, clean(self.group.class_name, 80))

    @property
    def kind(self) -> str:
        """What the examples of the group have in common."""
        grouping = grouping_named(self.group.grouping)
        return f"{self.group.grouping} group" if grouping is None else grouping.kind


@dataclass(frozen=True)
class FeatureView:
    """A feature that rules mention, with its index in the report."""

    index: int
    feature: FeatureReport
    title: str
    check: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class ModeRow:
    """A failure mode in the table of the diary.

    Attributes:
        at: Path of its latest record.
        mode: The latest record.
        status: The status now.
        past: (analysis, index) of all its records in the history.
        now: Whether the last analysis in the diary has a record of the mode.
    """

    at: str
    mode: ModeReport
    status: str
    past: tuple[tuple[int, int], ...]
    now: bool


@dataclass(frozen=True)
class Page:
    """The content of the templates.

    Attributes:
        title: Name of the run.
        report: The report that the page shows.
        figures: Reads numbers by path.
        history: The reports of the run, oldest first.
        findings: What is wrong, what it pays most to fix first.
        nothing: Why nothing was found; None with findings.
        before: Index in the history of the report before, for changes; or None.
        classes: The ranked table.
        cards: Details of the worst classes.
        matrix: The confusion matrix, or None.
        slices: (path, slice) of slices of all classes and of each class.
        trees: Trees with a pattern.
        no_trees: (index, group, reason) of groups without a tree that is shown.
        groups: (index, group) of all groups.
        features: Features that rules mention.
        sparse: The sparse decision layer, or None.
        methods: What other methods rank first, or None.
        modes: The table of the diary.
        diary_of: Index in the history of the last report in the diary, if that is not the report of the page.
        studies: The studies with people that were made of the run.
        interventions: (outcome, sentence) of each intervention.
        more: Pictures that belong to no other section.
        examples: The data of the table of examples.
        charts: Vega-Lite specification of each chart that has data, by name.
        class_rows: Rows of each chart of a class, by chart and by the index of the class.
        caveats: What to know before reading the numbers.
        omitted: Number of items left out of each section.
    """

    title: str
    report: FailureReport
    figures: Figures
    history: tuple[FailureReport, ...]
    findings: tuple[FindingView, ...]
    nothing: NothingFound | None
    before: int | None
    classes: tuple[ClassRow, ...]
    cards: tuple[Card, ...]
    matrix: ConfusionMatrix | None
    slices: tuple[tuple[str, SliceReport], ...]
    trees: tuple[TreeView, ...]
    no_trees: tuple[tuple[int, GroupReport, str], ...]
    groups: tuple[tuple[int, GroupReport], ...]
    features: tuple[FeatureView, ...]
    sparse: SparseView | None
    methods: MethodComparison | None
    modes: tuple[ModeRow, ...]
    diary_of: int | None
    studies: tuple[StudyReport, ...]
    interventions: tuple[tuple[str, str], ...]
    more: tuple[Picture, ...]
    examples: dict[str, Any]
    charts: dict[str, dict[str, Any]]
    class_rows: dict[str, dict[str, Rows]]
    caveats: tuple[str, ...]
    omitted: dict[str, int] = field(default_factory=dict)

    @property
    def feature_notes(self) -> list[str]:
        """What the pictures of features lack, and why; each reason once."""
        notes = [clean(picture.note, 200) for view in self.features for picture in view.pictures if picture.note]
        return list(dict.fromkeys(notes))

    @property
    def has_map(self) -> bool:
        """Whether some examples have a place on the map."""
        return any(row[-1] is not None for row in self.examples["rows"])

    @property
    def shared_sentence(self) -> str:
        """How far to trust the pattern that all classes share; empty without one."""
        return "" if self.report.shared is None else shared_sentence(self.report.shared)

    def without_charts(self) -> Page:
        """Return the page without its charts."""
        cards = tuple(replace(card, charts={}) for card in self.cards)
        return replace(self, charts={}, class_rows={}, cards=cards)

    def has_feature(self, number: int) -> bool:
        """Return whether the page shows a feature."""
        return any(view.feature.feature == number for view in self.features)

    def has_card(self, index: int) -> bool:
        """Return whether the class of an index has a card."""
        return any(card.index == index for card in self.cards)

    def charts_of(self, section: str) -> list[tuple[str, Chart]]:
        """Return the charts of a section that have data, with their names."""
        return [(name, chart) for name, chart in CHARTS.items() if chart.section == section and name in self.charts]

    def charts_of_card(self, card: Card) -> list[tuple[str, ClassChart]]:
        """Return the charts of a card that have data, with their names."""
        return [(name, chart) for name, chart in CLASS_CHARTS.items() if name in card.charts]


@dataclass(frozen=True)
class _Pictured:
    """The sections with pictures, and the number of pictures that are left out of them."""

    findings: tuple[FindingView, ...]
    cards: tuple[Card, ...]
    trees: tuple[TreeView, ...]
    features: tuple[FeatureView, ...]
    sparse: SparseView | None
    more: tuple[Picture, ...]
    omitted: int


def build_page(run: Run) -> Page:
    """Select what the page of a run shows."""
    report, history, table = run.report, run.history or (run.report,), run.table
    before = len(history) - 2 if len(history) > 1 else None
    previous = None if before is None else history[before]
    in_diary = last_diary_entry(history)

    ranked, groups = _ranked_classes(report), _ranked_groups(report)
    with_tree = [(index, group) for index, group in groups if group.pattern and group.skipped is None][:MAX_TREES]
    without_tree = [(i, group, group_sentence(group)) for i, group in groups if (i, group) not in with_tree]
    pictured = _pictured(run, ranked, with_tree)
    matrix, slices, modes = confusion_matrix(table), _slices(report), _modes(report, history)
    methods = _methods(run)
    charts, class_rows = _charts(report, history, pictured.cards)
    omitted = {
        "classes": max(len(report.classes) - MAX_CLASS_ROWS, 0),
        "cards": max(len(report.classes) - len(pictured.cards), 0),
        "slices": max(len(significant_slices(report)) - MAX_SLICES, 0),
        "no_trees": max(len(without_tree) - MAX_LINES, 0),
        "groups": max(len(groups) - MAX_GROUP_ROWS, 0),
        "features": max(len(report.features) - MAX_FEATURES, 0),
        "modes": max(len(modes) - MAX_MODE_ROWS, 0),
        "images": pictured.omitted,
    }
    return Page(
        title=_title(run),
        report=report,
        figures=Figures(
            {
                "report": report,
                "history": history,
                "examples": table,
                "matrix": {} if matrix is None else matrix.counts,
                "methods": methods or {},
                "method_shares": [] if methods is None else [list(row.shares.values()) for row in methods.rows],
                "base_shares": [] if methods is None else list(methods.base_shares.values()),
                "studies": run.studies,
            }
        ),
        history=history,
        findings=pictured.findings,
        nothing=why_nothing(report),
        before=before,
        classes=_class_rows(report, ranked, previous, {card.index for card in pictured.cards}),
        cards=pictured.cards,
        matrix=matrix,
        slices=slices[:MAX_SLICES],
        trees=pictured.trees,
        no_trees=tuple(without_tree[:MAX_LINES]),
        groups=tuple(groups[:MAX_GROUP_ROWS]),
        features=pictured.features,
        sparse=pictured.sparse,
        methods=methods,
        modes=modes[:MAX_MODE_ROWS],
        diary_of=next((i for i, one in enumerate(history) if one is in_diary and one is not report), None),
        studies=run.studies,
        interventions=_interventions(report),
        more=pictured.more,
        examples=browsing_data(table, run.gallery or Gallery(), report),
        charts=charts,
        class_rows=class_rows,
        caveats=tuple(clean(note, 500) for note in (*report.notes, *run.notes)[:MAX_LINES]),
        omitted=omitted,
    )


def _methods(run: Run) -> MethodComparison | None:
    """Return what the methods of the run rank first; None if it holds no rankings of others."""
    if run.table is None or not run.report.methods.get("baselines"):
        return None
    try:
        found = compare_methods(run.report, run.table, earlier=earlier_tables(run))
    except (ConfigurationError, DataError):  # no class that every method ranks
        return None
    base = found.base_shares
    apart = {value: max(abs(row.shares[value] - share) for row in found.rows) for value, share in base.items()}
    shown = sorted(apart, key=lambda value: -apart[value])[:MAX_METHOD_VALUES]
    rows = (
        replace(
            row,
            hardest={},
            shares={value: row.shares[value] for value in shown},
            captions=dict(list(row.captions.items())[:MAX_METHOD_CAPTIONS]),
        )
        for row in found.rows
    )
    return replace(found, rows=tuple(rows), base_shares={value: base[value] for value in shown})


def _pictured(run: Run, ranked: list[tuple[int, ClassReport]], with_tree: list[tuple[int, GroupReport]]) -> _Pictured:
    """Return the sections with pictures; they take them in the order of the page, until the budget is used up."""
    report = run.report
    pictures = PictureIndex(run.gallery or Gallery(), ExampleLookup(run.table), PICTURE_CHARACTERS)
    findings = finding_views(run, pictures)
    cards = _cards(report, ranked, pictures, dict(with_tree))
    trees = _trees(report, with_tree, pictures)
    features = _features(report, pictures)
    sparse = sparse_view(report, pictures.take)
    more = pictures.take_rest()
    return _Pictured(findings, cards, trees, features, sparse, more, pictures.budget.omitted)


def _features(report: FailureReport, pictures: PictureIndex) -> tuple[FeatureView, ...]:
    """Return the features that rules mention, with their pictures."""
    return tuple(
        FeatureView(
            index,
            feature,
            feature_name(feature.feature, feature),
            "" if feature.counterfactual is None else counterfactual_sentence(feature.counterfactual),
            pictures.take(f"features/{feature.feature}"),
        )
        for index, feature in enumerate(report.features[:MAX_FEATURES])
    )


def _title(run: Run) -> str:
    """Return the last two parts of the log folder."""
    parts = [part for part in map(clean, run.folder.parts) if part not in ("", "/", ".", "..", "failures")]
    return "/".join(parts[-2:]) or "a run"


def _ranked_classes(report: FailureReport) -> list[tuple[int, ClassReport]]:
    index_of = {id(entry): index for index, entry in enumerate(report.classes)}
    return [(index_of[id(entry)], entry) for entry in rank_classes(report)]


def _ranked_groups(report: FailureReport) -> list[tuple[int, GroupReport]]:
    """Return groups with their indices: those with a pattern first, by gain; untested groups last."""

    def key(item: tuple[int, GroupReport]) -> tuple[bool, bool, float]:
        group = item[1]
        return not group.pattern, group.skipped is not None, -(group.heldout_aler_minus_ber or 0.0)

    return sorted(enumerate(report.groups), key=key)


def _class_rows(
    report: FailureReport, ranked: Iterable[tuple[int, ClassReport]], before: FailureReport | None, cards: set[int]
) -> tuple[ClassRow, ...]:
    label_groups = {group.class_name: i for i, group in enumerate(report.groups) if group.grouping == LABEL.name}
    index_before = {} if before is None else {entry.name: index for index, entry in enumerate(before.classes)}
    names = class_names(report)
    rows = []
    for index, entry in list(ranked)[:MAX_CLASS_ROWS]:
        has_card = index in cards
        sentence = trust_sentence(entry, names)
        sentence = _first_sentence(sentence) if has_card else sentence  # the card has all
        group = label_groups.get(entry.name)
        known = (class_words(entry), mostly_mistaken_for(entry, names), class_confidence(entry))
        rows.append(ClassRow(index, entry, sentence, *known, index_before.get(entry.name), group, has_card))
    return tuple(rows)


def _first_sentence(sentences: str) -> str:
    return sentences.split(". ", 1)[0].removesuffix(".") + "."


def _cards(
    report: FailureReport, ranked: list[tuple[int, ClassReport]], pictures: PictureIndex, trees: dict[int, GroupReport]
) -> tuple[Card, ...]:
    """Return the cards of the classes that it pays most to fix and that have details to show."""
    # graded classes without any failure have no details to show
    candidates = [(index, entry) for index, entry in ranked if entry.cv_score is not None or entry.base_error_rate]
    names = class_names(report)
    found = [finding.parts[0].class_name for finding in report.findings if finding.parts]
    chosen = {index for index, _ in candidates[:MAX_CARDS]}
    trees_of: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index, group in trees.items():
        grouping = grouping_named(group.grouping)
        if grouping is None or not grouping.across_classes:  # a cluster may have the name of a class
            trees_of[group.class_name].append((index, group.grouping))
    return tuple(
        Card(
            index=index,
            entry=entry,
            sentence=trust_sentence(entry, names),
            diagnosis="" if entry.diagnosis is None else diagnosis_sentence(entry.diagnosis),
            pictures=tuple(
                picture
                for kind in ("classes", "cards")
                for picture in pictures.take(f"{kind}/{tag_part(entry.name)}", entry.name)
            ),
            open=entry.name in found,
            charts=_class_charts(entry),
            trees=tuple(sorted(trees_of[entry.name], key=lambda tree: tree[1])),
            values=_values(entry),
            slices=tuple(
                (f"report/classes/{index}/slices/{i}", row) for i, row in enumerate(entry.slices[:MAX_VALUES])
            ),
        )
        for index, entry in ranked
        if index in chosen
    )


def _class_charts(entry: ClassReport) -> dict[str, Rows]:
    rows_of = {name: chart.rows(entry) for name, chart in CLASS_CHARTS.items()}
    return {name: rows for name, rows in rows_of.items() if rows}


def _values(entry: ClassReport) -> tuple[int, ...]:
    """Return the indices of the values of metadata that are most over-represented among flagged examples."""
    return tuple(sorted(range(len(entry.enrichment)), key=lambda i: -entry.enrichment[i].lift)[:MAX_VALUES])


def _slices(report: FailureReport) -> tuple[tuple[str, SliceReport], ...]:
    """Return (path, slice): the significant ones by the lower end of their gap, then the others of all classes."""
    significant = significant_slices(report)
    others = [(f"slices/{i}", row) for i, row in enumerate(report.slices) if not row.significant]
    others.sort(key=lambda item: -lower_end(item[1]))
    return tuple((f"report/{path}", row) for path, row in (*significant, *others))


def _trees(
    report: FailureReport, with_tree: list[tuple[int, GroupReport]], pictures: PictureIndex
) -> tuple[TreeView, ...]:
    features = {feature.feature: feature for feature in report.features}
    names = {number: clean(name, 60) for number, name in names_in(report.features).items()}
    return tuple(
        TreeView(
            index=index,
            group=group,
            sentence=with_names(group_sentence(group), names),
            root=outline(group, features),
            pictures=pictures.take_leaves(group),
        )
        for index, group in with_tree
    )


def _charts(
    report: FailureReport, history: tuple[FailureReport, ...], cards: tuple[Card, ...]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Rows]]]:
    """Return the specifications of all charts with data, and the rows of the charts of classes."""
    specifications, class_rows = {}, {}
    for name, chart in CHARTS.items():
        if rows := chart.rows(report, history):
            specifications[name] = chart.draw(rows)
    # one specification for all classes; the script of the page fills in the rows of each
    for name, class_chart in CLASS_CHARTS.items():
        if rows_of := {str(card.index): card.charts[name] for card in cards if name in card.charts}:
            specifications[name], class_rows[name] = class_chart.draw([]), rows_of
    return specifications, class_rows


def _modes(report: FailureReport, history: tuple[FailureReport, ...]) -> tuple[ModeRow, ...]:
    # where each mode is recorded: (analysis, index), oldest first
    past: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for analysis, earlier in enumerate(history):
        for index, mode in enumerate(earlier.modes):
            past[mode.name].append((analysis, index))
    last = last_diary_entry(history)
    rows = []
    for mode_history in histories(history):
        analysis, index = past[mode_history.name][-1]
        now = history[analysis] is last
        at = f"report/modes/{index}" if history[analysis] is report else f"history/{analysis}/modes/{index}"
        status = mode_history.status if now or mode_history.status == "cured" else "missing"
        if now and is_unjudged(history[analysis].modes[index]):
            status = "not judged"  # its class has too few failures now, or was left out
        rows.append(ModeRow(at, history[analysis].modes[index], status, tuple(past[mode_history.name]), now))
    return tuple(sorted(rows, key=lambda row: (not row.now, row.mode.rank)))


def _interventions(report: FailureReport) -> tuple[tuple[str, str], ...]:
    """Return (outcome, sentence) of each intervention."""
    found = []
    for entry, line in zip(report.interventions, intervention_lines(report), strict=True):
        verdict = entry.get("verdict", "not measured")
        outcome = verdict.get("outcome", "") if isinstance(verdict, dict) else verdict
        found.append((clean(str(outcome), 20), clean(line, 2000)))
    return tuple(found[-MAX_LINES:])
