"""The section of the sparse decision layer: features behind errors, classes as bars, and cards of single errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from lightning_failures.core.text import clean
from lightning_failures.data.report import FailureReport
from lightning_failures.report.gallery import Picture, Row, Tile
from lightning_failures.report.sentences import counterfactual_sentence
from lightning_failures.report.sparse import ErrorEntry, SparseReport, sparse_report, sparse_sentence

MAX_FEATURES = 12
MAX_CLASSES = 24
MAX_ERRORS = 40
MAX_MASKS = 20
MAX_PAIRS = 12
MAX_BARS = 8
TILES = 4  # beside a bar


@dataclass(frozen=True)
class FeatureCard:
    """A feature that is behind errors.

    Attributes:
        at: Path of its entry in the report.
        title: Its number and name.
        tag: What people tagged it, or None.
        pairs: (label, prediction, path of the count) of the pairs that it confuses.
        pictures: The errors, and the images that activate it most.
        card: Images of the two classes that it confuses most, with heat maps and an attack.
        caption: What the feature looks like, a hypothesis; None without one.
        check: The sentence on whether its region flips the model; empty without one.
    """

    at: str
    title: str
    tag: str | None
    pairs: tuple[tuple[str, str, str], ...]
    pictures: tuple[Picture, ...]
    card: tuple[Picture, ...] = ()
    caption: str | None = None
    check: str = ""


@dataclass(frozen=True)
class FeatureBar:
    """A feature of a class as a bar: path of its weight, length in [0, 1], sign, and images that activate it most."""

    at: str
    title: str
    length: float
    positive: bool
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class ClassBars:
    """The features of a class: its name, the path of their number, and a bar for each."""

    name: str
    at: str
    bars: tuple[FeatureBar, ...]


@dataclass(frozen=True)
class SparseView:
    """The content of the section.

    Attributes:
        sentence: What the layer shows, with controls.
        features: Features most often problematic.
        classes: Classes with their features.
        errors: (path, error, title of its feature).
        conditions: (path, name, whether its accuracy is balanced) of each condition of a multilabel task.
        masks: (path, title, class or None) of features worth masking.
        pairs: (path, first, second) of pairs of classes.
        counterfactuals: (path, title of the feature, label, prediction) of features that are raised and zeroed.
        masks_known: Whether it was computed which features are worth masking.
    """

    sentence: str
    features: tuple[FeatureCard, ...]
    classes: tuple[ClassBars, ...]
    errors: tuple[tuple[str, ErrorEntry, str], ...]
    conditions: tuple[tuple[str, str, bool], ...]
    masks: tuple[tuple[str, str, str | None], ...]
    pairs: tuple[tuple[str, str, str], ...]
    masks_known: bool
    counterfactuals: tuple[tuple[str, str, str, str], ...] = ()


def sparse_view(report: FailureReport, take: Callable[[str], tuple[Picture, ...]]) -> SparseView | None:
    """Select what the section shows; None without a sparse layer.

    Args:
        report: The report of the page.
        take: Returns the pictures with a tag, each once.
    """
    found = sparse_report(report)
    if found is None:
        return None
    root = "report/methods/sparse"
    pictures = {feature: take(f"sparse/{feature}") for feature in found.shown}
    of_cards = {one.feature: take(f"sparse/{one.feature}/card") for one in found.cards}
    cards = tuple(
        _card(found, root, index, pictures, of_cards) for index in range(len(found.problematic[:MAX_FEATURES]))
    )
    errors = [(f"{root}/errors/{i}", one) for i, one in enumerate(found.errors[:MAX_ERRORS])]
    masks = [(f"{root}/worth_masking/{i}", one) for i, one in enumerate((found.worth_masking or ())[:MAX_MASKS])]
    return SparseView(
        sentence=sparse_sentence(report),
        features=cards,
        classes=tuple(_class(found, root, index, pictures) for index in range(len(found.classes[:MAX_CLASSES]))),
        errors=tuple((at, one, "none" if one.feature is None else found.label(one.feature)) for at, one in errors),
        conditions=tuple((f"{root}/conditions/{i}", one.name, one.balanced) for i, one in enumerate(found.conditions)),
        masks=tuple((at, found.label(one.feature), one.class_name) for at, one in masks),
        pairs=tuple((f"{root}/pairs/{i}", one.first, one.second) for i, one in enumerate(found.pairs[:MAX_PAIRS])),
        masks_known=found.worth_masking is not None,
        counterfactuals=tuple(
            (f"{root}/cards/{i}", found.label(one.feature), one.label, one.prediction)
            for i, one in enumerate(found.cards[:MAX_FEATURES])
        ),
    )


def _card(
    found: SparseReport,
    root: str,
    index: int,
    pictures: dict[int, tuple[Picture, ...]],
    of_cards: dict[int, tuple[Picture, ...]],
) -> FeatureCard:
    entry = found.problematic[index]
    card = found.card(entry.feature)
    checked = None if card is None else card.counterfactual
    at = f"{root}/problematic/{index}"
    return FeatureCard(
        at=at,
        title=found.label(entry.feature),
        tag=next((clean(one.tag, 30) for one in found.names if one.feature == entry.feature and one.tag), None),
        pairs=tuple((one.label, one.prediction, f"{at}/pairs/{i}/count") for i, one in enumerate(entry.pairs)),
        pictures=pictures[entry.feature],
        card=of_cards.get(entry.feature, ()),
        caption=None if card is None or card.caption is None else clean(card.caption, 120),
        check="" if checked is None else counterfactual_sentence(checked),
    )


def _class(found: SparseReport, root: str, index: int, pictures: dict[int, tuple[Picture, ...]]) -> ClassBars:
    entry = found.classes[index]
    largest = max((abs(one.weight) for one in entry.weights), default=0.0) or 1.0
    bars = tuple(
        FeatureBar(
            at=f"{root}/classes/{index}/weights/{i}/weight",
            title=found.label(one.feature),
            length=abs(one.weight) / largest,
            positive=one.weight > 0,
            tiles=_most_active(pictures.get(one.feature, ())),
        )
        for i, one in enumerate(entry.weights[:MAX_BARS])
    )
    return ClassBars(clean(entry.name, 80), f"{root}/classes/{index}/features", bars)


def _most_active(pictures: tuple[Picture, ...]) -> tuple[Tile, ...]:
    """Return the images that activate a feature most, from the last row of its picture."""
    rows: tuple[Row, ...] = pictures[0].rows if pictures else ()
    return tuple(replace(tile) for tile in rows[-1].tiles[:TILES]) if rows else ()
