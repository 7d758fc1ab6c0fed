"""The pictures of one analysis, and what else is worth its time only once: what chance would have scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.captions.assign import classes_to_caption
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.budget import Deadline
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import RowValues, members_of
from lightning_failures.data.partition import Partition, owned_rows
from lightning_failures.directions.null_scores import CLASSES_WITH_NULL_SCORES, add_null_cv_scores
from lightning_failures.encoders import gives_maps
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.report.feature_names import FEATURES_FILE, FeatureNames
from lightning_failures.report.gallery import Gallery
from lightning_failures.trainer.batch_reader import BatchReader, ExampleReader
from lightning_failures.trainer.evaluation_pass import EvaluationPass
from lightning_failures.trainer.index_recorder import dataset_of
from lightning_failures.trainer.pictures.classes_and_leaves import browsed_ids, draw_gallery
from lightning_failures.trainer.pictures.sources import PictureInputs, Rows, pictured_members
from lightning_failures.trainer.ranks import Communicator

PATIENCE = 5.0
"""Seconds for the CV scores that chance gives, at least."""


@dataclass(frozen=True)
class AnalysisSnapshot:
    """An analysis that may be drawn.

    Attributes:
        result: The analysis.
        loader: Images are read from its dataset.
        grades: N rows.
        sampled: (N,) bool, those that directions and trees have looked at.
        evaluation: Grader and embeddings of the pass over the loader.
        folder: Of files.
    """

    result: AnalysisResult
    loader: Any
    grades: Grades
    sampled: NDArray[np.bool_]
    evaluation: EvaluationPass
    folder: Path


@dataclass(frozen=True)
class GalleryBuilder:
    """Draws analyses.

    Attributes:
        directions: The lens of the failure directions, or None.
        trees: The lens of the failure trees, or None.
        reader: Reads images.
        captions: Class names -> source of candidate captions, or None.
        nulls: How many permutations tell which CV scores chance gives.
        worst_k: How many classes, and groups, are drawn.
        feature_names: File with names of features; None: the one in the folder of the run.
        seed: Of what is drawn at random.
        say_once: Tells a person something that is not worth telling twice.
    """

    directions: CachedEncoder | None
    trees: CachedEncoder | None
    reader: BatchReader
    captions: Callable[[tuple[str, ...]], Callable[[int], ClassCaptions | None] | None]
    nulls: int
    worst_k: int
    feature_names: Path | None
    seed: int
    say_once: Callable[..., None]

    def draw(
        self, scene: AnalysisSnapshot, ranks: Communicator, deadline: Deadline | None
    ) -> tuple[AnalysisResult, Gallery | None]:
        """Draw, on the first process; what goes wrong there is told. Collective.

        Args:
            scene: What.
            ranks: The processes.
            deadline: What comes after it is left out: feature attacks first.

        Returns:
            The report with the features that are shown, the same on all; and the pictures, None on other processes.
        """
        if not scene.evaluation.grader.indexed:
            self.say_once("The ids of read_batch are not the indices of the dataset: no pictures.")
        sources = self._sources(scene, ranks, deadline) if scene.evaluation.grader.indexed else None
        # for some seconds at least, however short an epoch is
        patience = None if deadline is None else Deadline.after(max(deadline.left, PATIENCE))
        result = self._with_nulls(scene, ranks, patience)
        report = result.report
        gallery = Gallery(epoch=report.epoch, global_step=report.global_step) if ranks.is_first else None
        features = report.features
        if sources is not None:
            try:
                gallery, features = draw_gallery(result, scene.grades, sources, worst_k=self.worst_k)
            except Exception as error:
                self.say_once(f"FailureModes could not draw pictures: {type(error).__name__}: {error}")
        return result.with_report(features=ranks.broadcast(features)), gallery

    def _sources(self, scene: AnalysisSnapshot, ranks: Communicator, deadline: Deadline | None) -> PictureInputs | None:
        """What the pictures are drawn from, on the first process. Collective."""
        encoder = None if self.trees is None else self.trees.encoder
        robust = encoder if encoder is not None and gives_maps(encoder) else None
        result, pass_embeddings = scene.result, scene.evaluation.embeddings
        members = pictured_members(result, self.worst_k) if robust is not None else torch.empty(0, dtype=torch.int64)
        browsed = browsed_ids(result.table, seed=self.seed)
        known = scene.grades.ids[scene.sampled]
        embedded = torch.unique(torch.cat([members, browsed]))
        embedded = embedded[torch.isin(embedded, known)]
        features = pass_embeddings.embeddings_on_first(self.trees, members) if len(members) else None
        embeddings = pass_embeddings.embeddings_on_first(self.directions, embedded) if len(embedded) else None
        if not ranks.is_first:
            return None
        return PictureInputs(
            images=ExampleReader(dataset_of(scene.loader), scene.loader.collate_fn, self.reader).images,
            robust=robust,
            features=None if features is None else Rows(members, features),
            embeddings=None if embeddings is None else Rows(embedded, embeddings),
            captions=self.captions(scene.grades.class_names),
            browsed=browsed,
            store=None if self.trees is None else self.trees.store,
            deadline=deadline,
            names=self._names(scene.folder),
        )

    def _with_nulls(self, scene: AnalysisSnapshot, ranks: Communicator, deadline: Deadline | None) -> AnalysisResult:
        """Put the CV scores that chance gives beside those of the worst classes. Collective."""
        result, grades = scene.result, scene.grades
        report = result.report
        if self.directions is None or result.directions is None or self.nulls == 0:
            return result
        wanted = classes_to_caption(report.classes, CLASSES_WITH_NULL_SCORES)
        rows = scene.sampled & np.isin(grades.labels.numpy(), wanted)
        share = Partition.of(grades, rows, ranks)
        ids = [
            torch.unique(grades.ids[owned_rows(grades, k, ranks.world_size, sampled=rows)])
            for k in range(ranks.world_size)
        ]
        embeddings = scene.evaluation.embeddings.embeddings_of(self.directions, ids)
        if embeddings is None:
            return result
        classes, left_out = add_null_cv_scores(
            report.classes,
            result.directions,
            members_of(grades, "label", rows),
            RowValues.of(embeddings, grades, share.rows, "embeddings"),
            wanted,
            share,
            permutations=self.nulls,
            seed=self.seed,
            deadline=deadline,
        )
        told = (f"Which CV scores chance gives was not found for {left_out} classes: time was short.",)
        return result.with_report(classes=classes, notes=(*report.notes, *(told if left_out else ())))

    def _names(self, folder: Path) -> FeatureNames:
        """What people call the features; a file that cannot be read is told of, and left alone."""
        if self.trees is None:
            return FeatureNames()
        try:
            path = self.feature_names or folder / FEATURES_FILE
            return FeatureNames.load(path, encoder=self.trees.encoder.fingerprint)
        except ConfigurationError as error:
            self.say_once(f"FailureModes knows no names of features: {error}")
            return FeatureNames()
