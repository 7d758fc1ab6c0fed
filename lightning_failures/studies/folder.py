"""A study from the files of a run: its pictures, and a sparse layer with the features that it was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_failures.core.text import clean
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.gallery import Gallery, pictures_by_id
from lightning_failures.report.image_encoding import data_uri
from lightning_failures.report.images import thumbnail
from lightning_failures.report.run_folder import Run
from lightning_failures.report.sparse import SparseReport, sparse_report
from lightning_failures.sparse import SparseLayer, problematic_features
from lightning_failures.studies.records import Panel, Question, Study
from lightning_failures.studies.sampling import matchings, simulations, spread_classes
from lightning_failures.studies.sparse_run import reported_descriptions, reported_matchings, reported_simulations
from lightning_failures.studies.tasks import (
    describe_questions,
    match_questions,
    mixed,
    questionnaire_questions,
    simulate_questions,
)

TASKS = ("simulate", "match", "describe", "questionnaire")
"""Tasks of :func:`make_study`."""

CLASSES_PER_END = 20
FEATURES_PER_CLASS = 10
"""Classes from the top, the middle and the bottom of the error rates whose features are described, as in Barlow."""

_SIDE = 96
_MOST_PIXELS = 1 << 26


def make_study(
    run: Run,
    task: str,
    *,
    layer: Path | None = None,
    features: Path | None = None,
    files: Mapping[int, str] | None = None,
    count: int = 20,
    controls: int = 3,
    seed: int = 0,
) -> Study:
    """Return a study of the findings of a run.

    Args:
        run: The run.
        task: One of :data:`TASKS`.
        layer: File of a :class:`~lightning_failures.sparse.SparseLayer`, for simulate and match; without it, they ask
            about the sparse layer of the report.
        features: Safetensors file with ``features`` (N, D) float, ``labels`` (N,) int64 and ``ids`` (N,) int64 of the
            evaluated examples, and optionally ``dense_weight`` (K, D) and ``dense_bias`` (K,), for simulate and match.
        files: File of each example by hash of its name; where there is none, its thumbnail is shown.
        count: Number of questions of each condition.
        controls: Number of questions whose answer is evident.
        seed: Seed of everything that is drawn.

    Raises:
        ConfigurationError: What the task needs is not given.
        DataError: The run or a file does not hold what the task needs.
    """
    if task not in TASKS:
        raise ConfigurationError(f"study --task must be one of {', '.join(TASKS)}, got {task!r}.")
    if task == "questionnaire":
        return mixed(task, questionnaire_questions(), seed=seed)
    if task == "describe":
        questions = _describe(run, count, seed)
    elif layer is None and features is None and (found := sparse_report(run.report)) is not None:
        questions = _of_report(run, found, task, files or {}, count, seed)
    else:
        if layer is None or features is None:
            missing = "--layer FILE (SparseLayer.save)" if layer is None else "--features FILE (safetensors)"
            raise ConfigurationError(
                f"study --task {task} needs {missing}, or a run that was made with FailureModes(sparse=True)."
            )
        data = _read_features(run, features, files or {})
        sparse = SparseLayer.load(layer)
        if sparse.weight.shape[1] != data.features.shape[1]:
            raise DataError(
                f"{layer} is a layer of {sparse.weight.shape[1]} features, {features} holds {data.features.shape[1]}."
            )
        questions = (_simulate if task == "simulate" else _match)(sparse, data, count, seed)
    if not questions:
        raise DataError(f"{run.folder} holds too few pictures for study --task {task}: analyse with pictures=True.")
    return mixed(task, questions, controls=controls, seed=seed)


@dataclass(frozen=True, eq=False)
class _Shown:
    """The examples that can be shown: features (n, D), labels (n,), pictures, and the dense layer if there is one."""

    features: Tensor
    labels: Tensor
    pictures: tuple[Tensor, ...]
    dense: tuple[Tensor, Tensor] | None = None

    def image_of(self, row: int) -> str:
        """Return the picture of a row as a data URI."""
        return data_uri(self.pictures[row], lossless=False)


def _simulate(layer: SparseLayer, data: _Shown, count: int, seed: int) -> list[Question]:
    layers = {"sparse": (layer.weight, layer.bias)}
    if data.dense is not None:
        layers["dense"] = data.dense
    questions = []
    for name, (weight, bias) in layers.items():
        found = simulations(weight, bias, data.features, count=count, seed=seed)
        questions += simulate_questions(found, name, data.image_of)
    return questions


def _match(layer: SparseLayer, data: _Shown, count: int, seed: int) -> list[Question]:
    wrong = problematic_features(layer, data.features, data.labels)
    if not len(wrong.ids):
        raise DataError(
            "The sparse layer makes no error on the examples that can be shown, so there is nothing to match."
        )
    errors, worst = (np.asarray(one) for one in (wrong.ids, wrong.feature))
    found = matchings(layer.weight, data.features, data.labels, errors, worst, count=count, seed=seed)
    return match_questions(found, data.image_of, seed=seed)


def _of_report(
    run: Run, found: SparseReport, task: str, files: Mapping[int, str], count: int, seed: int
) -> list[Question]:
    """Return questions about the sparse layer of the report, whose images are named by ids."""
    ids = set() if run.table is None else set(run.table.ids.tolist())
    wanted = sorted(ids | pictures_by_id(run.gallery).keys())
    images, kept = _pictures(run, wanted, files)
    pictures = {wanted[place]: image for place, image in zip(kept, images, strict=True)}

    def image_of(example: int) -> str:
        return data_uri(pictures[example], lossless=False)

    if task == "match":
        return match_questions(reported_matchings(found, pictures, count=count, seed=seed), image_of, seed=seed)
    if run.table is None:
        raise DataError(f"{run.folder} holds no readable table of examples (examples.safetensors).")
    return simulate_questions(
        reported_simulations(found, run.table, pictures, count=count, seed=seed), "sparse", image_of
    )


def _describe(run: Run, count: int, seed: int) -> list[Question]:
    """Return questions about features of trees and, in turn, features of the model behind errors of a sparse layer."""
    sparse = sparse_report(run.report)
    of_model = [] if sparse is None else reported_descriptions(sparse, run.gallery)
    of_trees = _tree_features(run, seed)
    if not of_trees and not of_model:
        raise DataError(
            f"The gallery of {run.folder} holds no pictures of features. They are drawn for failure trees with a"
            " pattern, and for sparse layers: set robust_encoder=... or sparse=True, and pictures=True."
        )
    features = [one for turn in zip_longest(of_trees, of_model) for one in turn if one is not None]
    return describe_questions(features[:count] if count else features)


def _tree_features(run: Run, seed: int) -> list[tuple[str, str, tuple[Panel, ...]]]:
    """Return (class, feature, pictures) of features of classes at the top, middle and bottom of the error rates."""
    panels = _feature_panels(run.gallery)
    by_class: dict[str, list[int]] = {}
    for feature in run.report.features:
        for group in feature.groups:
            grouping, _, name = group.partition("/")
            if grouping in ("label", "prediction") and feature.feature in panels:
                by_class.setdefault(name, []).append(feature.feature)
    ranked = [entry for entry in run.report.classes if entry.name in by_class]
    if not ranked:
        return []
    chosen = spread_classes([1 - (entry.accuracy or 0.0) for entry in ranked], CLASSES_PER_END, seed=seed)
    rng = np.random.default_rng(seed)
    features = []
    for name in (ranked[k].name for k in chosen.tolist()):
        own = list(dict.fromkeys(by_class[name]))
        order = rng.permutation(len(own))[:FEATURES_PER_CLASS].tolist()
        features += [(clean(name, 60), f"feature {own[k]}", panels[own[k]]) for k in order]
    return features


def _feature_panels(gallery: Gallery | None) -> dict[int, tuple[Panel, ...]]:
    """Return the pictures of each feature; their titles do not tell what a caption supposes."""
    found: dict[int, tuple[Panel, ...]] = {}
    for picture in () if gallery is None else gallery.pictures:
        kind, _, number = picture.tag.partition("/")
        if kind != "features" or not number.isdecimal():
            continue
        titles = ("images", "heat maps", "feature attack")
        found[int(number)] = tuple(
            Panel(title, tuple(data_uri(tile.image, lossless=False) for tile in row.tiles))
            for title, row in zip(titles, picture.rows, strict=False)
        )
    return found


# -- features and pictures -------------------------------------------------------------------------------------------


def _read_features(run: Run, path: Path, files: Mapping[int, str]) -> _Shown:
    """Read a file of features and keep the examples that have a picture."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is no safetensors file with features ({str(error)[:200]}).") from error
    if missing := [name for name in ("features", "labels", "ids") if name not in tensors]:
        raise DataError(f"{path} lacks {', '.join(missing)}: features (N, D), labels (N,) and ids (N,) are needed.")
    if tensors["features"].ndim != 2 or len({len(tensors[name]) for name in ("features", "labels", "ids")}) != 1:
        raise DataError(f"{path}: features must be (N, D), labels and ids (N,) of the same N.")
    pictures, kept = _pictures(run, tensors["ids"].tolist(), files)
    if not kept:
        raise DataError(
            f"No example of {path} has a picture. Name the root folder of the dataset (--images FOLDER), or analyse"
            " with pictures=True; ids are those of the run."
        )
    rows = torch.tensor(kept)
    dense = None
    if "dense_weight" in tensors and "dense_bias" in tensors:
        dense = tensors["dense_weight"].float(), tensors["dense_bias"].float()
    return _Shown(tensors["features"][rows].float(), tensors["labels"][rows].long(), tuple(pictures), dense)


def _pictures(run: Run, ids: list[int], files: Mapping[int, str]) -> tuple[list[Tensor], list[int]]:
    """Return the pictures of examples that have one, and their places in ``ids``."""
    shown = pictures_by_id(run.gallery)
    names: dict[int, int] = {}
    if run.table is not None and run.table.names is not None and files:
        names = dict(zip(run.table.ids.tolist(), run.table.names.tolist(), strict=True))
    pictures, kept = [], []
    for place, example in enumerate(ids):
        path = files.get(names.get(example, -1))
        picture = shown.get(example) if path is None else _read_image(path)
        if picture is not None:
            pictures.append(picture)
            kept.append(place)
    return pictures, kept


def _read_image(path: str) -> Tensor | None:
    """Return the thumbnail (3, h, w) uint8 of an image file; None if it cannot be read."""
    try:
        with Image.open(BytesIO(Path(path).read_bytes())) as image:
            if image.width * image.height > _MOST_PIXELS:
                return None
            pixels: Any = np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError):
        return None
    return thumbnail(torch.from_numpy(pixels).permute(2, 0, 1), _SIDE)
