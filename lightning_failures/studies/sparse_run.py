"""What to ask about the sparse layer of a run, from its report and pictures alone.

The report holds the leading weights of each class, the images that activate features most, and the problematic feature
of errors, but no features. So a simulation shows leading features with a positive weight, and the right image is one
that the model itself classifies as the class; from a file of features, both follow the layer exactly.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

import numpy as np

from lightning_failures.core.text import clean
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.errors import DataError
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.image_encoding import data_uri
from lightning_failures.report.sparse import CardEntry, ErrorEntry, SparseReport
from lightning_failures.studies.records import Panel
from lightning_failures.studies.sampling import FEATURES, TOP_IMAGES, Matching, Simulation

_MIN_IMAGES = 3  # that show a feature


def reported_simulations(
    found: SparseReport, table: ExampleTable, pictures: Container[int], *, count: int, seed: int = 0
) -> list[Simulation]:
    """Return questions on which of three images the model gives a class; images are named by their ids.

    Args:
        found: The sparse layer of the report.
        table: The examples.
        pictures: Ids of the examples that can be shown.
        count: Number of questions.
        seed: Seed of the draw.

    Raises:
        DataError: The report has too few pictures, or does not know predictions.
    """
    if table.predictions is None:
        raise DataError("A simulation needs predicted classes, which a task with verdicts does not have.")
    shown = _shown(found, pictures)
    rng = np.random.default_rng(seed)
    visible = np.array([one in pictures for one in table.ids.tolist()], dtype=bool)
    ids, predictions = table.ids.numpy()[visible], table.predictions.numpy()[visible]
    right_ones = ~table.failed.numpy()[visible]
    classes = [
        (k, [one for one in entry.weights if one.weight > 0 and one.feature in shown])
        for entry in found.classes
        if entry.name in table.class_names
        for k in [table.class_names.index(entry.name)]
    ]
    classes = [(k, weights) for k, weights in classes if weights]
    questions: list[Simulation] = []
    for k, weights in [classes[i] for i in _cycle(len(classes), count, rng)]:
        chosen = [weights[i] for i in rng.permutation(len(weights))[:FEATURES].tolist()]
        panels = [shown[one.feature] for one in chosen]
        inside = np.setdiff1d(ids[(predictions == k) & right_ones], np.concatenate(panels))
        outside = np.setdiff1d(ids, np.concatenate([ids[predictions == k], *panels]))
        if not len(inside) or len(outside) < 2:
            continue
        options = np.array([rng.choice(inside), *rng.choice(outside, 2, replace=False)])
        places = rng.permutation(3)
        features = np.array([one.feature for one in chosen])
        values = np.array([one.weight for one in chosen])
        right = int(np.flatnonzero(places == 0)[0])
        questions.append(Simulation(k, features, values, _even(panels), options[places], right))
    return questions


def reported_matchings(found: SparseReport, pictures: Container[int], *, count: int, seed: int = 0) -> list[Matching]:
    """Return errors with the patterns to compare them with; images are named by their ids. See :func:`matchings`.

    The pattern of the true class is the feature with its largest weight.
    """
    shown = _shown(found, pictures)
    weights = {entry.name: [one.feature for one in entry.weights if one.weight > 0] for entry in found.classes}
    rng = np.random.default_rng(seed)
    errors = [one for one in found.errors if one.id in pictures and one.feature in shown]
    questions: list[Matching] = []
    for place in rng.permutation(len(errors)).tolist():
        features = _three(errors[place], weights, shown, rng)
        if features is None or len(questions) == count:
            continue
        panels = [[i for i in shown[one] if i != errors[place].id] for one in features]
        if min(map(len, panels)) >= _MIN_IMAGES - 1:
            questions.append(Matching(errors[place].id, np.array(features), _even(panels)))
    return questions


def reported_descriptions(found: SparseReport, gallery: Gallery | None) -> list[tuple[str, str, tuple[Panel, ...]]]:
    """Return (predicted class, feature, pictures) of the features that have a card in the gallery.

    The pictures are the most active images of two classes with their heat maps, and the feature attack. Their titles do
    not tell what a caption supposes.
    """
    by_tag = {picture.tag: picture for picture in (() if gallery is None else gallery.pictures)}
    described = []
    for card in found.cards:
        picture = by_tag.get(f"sparse/{card.feature}/card")
        panels = () if picture is None else tuple(_panels(picture, card))
        if panels:
            described.append((clean(card.prediction, 60), f"feature {card.feature} of the model", panels))
    return described


def _panels(picture: Picture, card: CardEntry) -> Iterator[Panel]:
    """Yield the rows of a card under neutral titles; the row of correct images nearest to flipping is left out."""
    names = iter([clean(one.class_name, 60) for one in card.top if one.ids])
    name = ""
    for row in picture.rows:
        if ": most active in " in row.title:
            name = next(names, name)
            title = f"images, {name}"
        elif row.title.startswith("where it is active"):
            title = f"heat maps, {name}"
        elif row.title.startswith("feature attack"):
            title = "feature attack"
        else:
            continue
        yield Panel(title, tuple(data_uri(tile.image, lossless=False) for tile in row.tiles))


def _three(
    error: ErrorEntry,
    weights: Mapping[str, Sequence[int]],
    shown: Mapping[int, Sequence[int]],
    rng: np.random.Generator,
) -> list[int] | None:
    """Return the problematic feature of an error, the leading one of its class and a random one."""
    worst = error.feature
    best = next((one for one in weights.get(error.label, ()) if one in shown and one != worst), None)
    others = [one for one in shown if one not in (worst, best)]
    if worst is None or best is None or not others:
        return None
    return [worst, best, int(rng.choice(others))]


def _shown(found: SparseReport, pictures: Container[int]) -> dict[int, list[int]]:
    """Return the ids of the images that show each feature, of features with enough of them.

    Raises:
        DataError: There are no such features.
    """
    shown = {int(one): [i for i in ids if i in pictures][:TOP_IMAGES] for one, ids in found.top_ids.items()}
    shown = {one: ids for one, ids in shown.items() if len(ids) >= _MIN_IMAGES}
    if len(shown) < 3:
        raise DataError(
            f"Only {len(shown)} features of the sparse layer can be shown by {_MIN_IMAGES} images. Name the root folder"
            " of the dataset (--images FOLDER), or analyse with pictures=True."
        )
    return shown


def _even(panels: Sequence[Sequence[int]]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return the same number of images of each panel."""
    size = min(map(len, panels))
    return np.array([panel[:size] for panel in panels], dtype=np.int64)


def _cycle(n: int, count: int, rng: np.random.Generator) -> list[int]:
    """Return ``count`` of n indices in random order, each about as often as the others."""
    rounds = -(-count // n) if n else 0
    return [i for _ in range(rounds) for i in rng.permutation(n).tolist()][:count]
