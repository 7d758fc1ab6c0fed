"""Builds the gallery of an analysis, and computes the CV scores expected by chance, which are also costly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.captions.assign import classes_to_caption
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.budget import Deadline
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import RowValues, members_of
from lightning_failures.data.partition import Partition, owned_rows
from lightning_failures.data.report import ClassReport
from lightning_failures.directions.null_scores import CLASSES_WITH_NULL_SCORES, add_null_cv_scores
from lightning_failures.encoders import gives_maps
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.generators.base import ImageGenerator
from lightning_failures.report.feature_names import FEATURES_FILE, FeatureNames
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.sparse import sparse_report
from lightning_failures.trainer.changed_images import ChangedImages
from lightning_failures.trainer.evaluation_pass import EvaluationPass
from lightning_failures.trainer.example_reader import ExampleReader
from lightning_failures.trainer.kept_images import KEPT_SIDE
from lightning_failures.trainer.model_features import model_fingerprint
from lightning_failures.trainer.pictures.classes_and_leaves import browsed_ids, draw_gallery
from lightning_failures.trainer.pictures.counterfactuals import render_captions
from lightning_failures.trainer.pictures.live_features import LiveFeatures
from lightning_failures.trainer.pictures.sources import (
    EmbeddingTable,
    PictureInputs,
    displayed_members,
    kept_images,
    with_examples_among,
)
from lightning_failures.trainer.pictures.sparse_cards import card_members, draw_cards
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.readings import VERDICTS

MIN_NULL_SECONDS = 5.0
"""Time for the CV scores expected by chance, however short an epoch is."""


@dataclass(frozen=True)
class AnalysisSnapshot:
    """An analysis and all that is needed to draw it later.

    Attributes:
        result: The analysis.
        trainer: The Trainer, whose model counterfactual checks ask.
        reader: Returns the reader of the examples of the evaluation loader.
        grades: N rows.
        sampled: (N,) bool, the rows that directions and trees were fitted on.
        evaluation: Grader and embeddings of the pass over the loader.
        folder: The folder of the run.
    """

    result: AnalysisResult
    trainer: Trainer
    reader: Callable[[], ExampleReader]
    grades: Grades
    sampled: NDArray[np.bool_]
    evaluation: EvaluationPass
    folder: Path


class CaptionsOfClasses(Protocol):
    """Returns a function from class index to candidate captions, or None if there can be no captions."""

    def __call__(
        self, class_names: tuple[str, ...], *, has_names: bool
    ) -> Callable[[int], ClassCaptions | None] | None:
        """Return the source of captions for these classes; ``has_names`` is False if the names are mere numbers."""


@dataclass(frozen=True, kw_only=True)
class GalleryBuilder:
    """Draws the pictures of analyses.

    Attributes:
        directions: The encoder of the failure directions, or None.
        trees: The encoder of the failure trees, or None.
        captions: Gives the candidate captions of classes.
        null_permutations: Number of permutations for the CV scores expected by chance; 0: none are computed.
        worst_k: Number of classes, and of trees, that are drawn.
        feature_names: File with names of features; None: the file in the folder of the run.
        seed: Seed of the choice of examples.
        say_once: Emits each distinct message at most once.
        counterfactuals: Whether regions of features are pasted; a generator: captions are rendered too.
        attacks: Whether features are attacked.
        device: Device of the Gram matrices behind the CV scores expected by chance.
        hurried: Whether the deadline also ends the reading of images; chance and counterfactual checks are left out.
    """

    directions: CachedEncoder | None
    trees: CachedEncoder | None
    captions: CaptionsOfClasses
    null_permutations: int
    worst_k: int
    feature_names: Path | None
    seed: int
    say_once: Callable[..., None]
    counterfactuals: bool | ImageGenerator = False
    attacks: bool = True
    device: str | torch.device = "cpu"
    hurried: bool = False

    def draw(
        self, snapshot: AnalysisSnapshot, ranks: Communicator, deadline: Deadline | None
    ) -> tuple[AnalysisResult, Gallery | None]:
        """Draw an analysis on the first process; an error there is reported once and leaves the gallery empty.

        Collective.

        Args:
            snapshot: The analysis.
            ranks: The processes.
            deadline: When to finish; feature attacks are skipped first.

        Returns:
            The result with the features that are shown, the same on all ranks; and the gallery, None on other ranks.
        """
        kept = None
        if not snapshot.evaluation.grader.indexed:
            kept = snapshot.evaluation.kept.gathered(ranks)
            self._report_kept(kept)
        inputs = None if kept == {} else self._inputs(snapshot, ranks, deadline, kept)
        result = snapshot.result if self.hurried else self._with_null_scores(snapshot, ranks, deadline)

        report = result.report
        classes, features = report.classes, report.features
        gallery = Gallery(epoch=report.epoch, global_step=report.global_step) if ranks.is_first else None
        if inputs is not None:
            try:
                shown = result if kept is None else with_examples_among(result, snapshot.grades, kept)
                gallery, features = draw_gallery(shown, snapshot.grades, inputs, worst_k=self.worst_k)
            except Exception as error:
                self.say_once(f"FailureModes could not draw pictures: {type(error).__name__}: {error}")
            classes = self._checked(classes, snapshot.grades, inputs.model)
            if gallery is not None and kept is None and not self.hurried:
                result, cards = self._with_cards(result, snapshot.grades, inputs)
                gallery = replace(gallery, pictures=(*gallery.pictures, *cards))
        classes, features, methods = ranks.broadcast((classes, features, result.report.methods))
        return result.with_report(classes=classes, features=features, methods=methods), gallery

    def _with_cards(
        self, result: AnalysisResult, grades: Grades, inputs: PictureInputs
    ) -> tuple[AnalysisResult, list[Picture]]:
        """Return the result and the pictures with the cards of features of a sparse layer; an error leaves them out."""
        try:
            return draw_cards(result, grades, inputs)
        except Exception as error:
            self.say_once(f"FailureModes could not draw the features of the model: {type(error).__name__}: {error}")
            return result, []

    def _checked(
        self, classes: tuple[ClassReport, ...], grades: Grades, model: ChangedImages | None
    ) -> tuple[ClassReport, ...]:
        """Return the classes with the checks of their captions; an error of the generator leaves them unchecked."""
        if model is None or isinstance(self.counterfactuals, bool):
            return classes
        try:
            return render_captions(classes, grades, model, self.counterfactuals, limit=self.worst_k, seed=self.seed)
        except Exception as error:
            self.say_once(f"FailureModes could not check captions: {type(error).__name__}: {error}")
            return classes

    def _model(self, snapshot: AnalysisSnapshot) -> ChangedImages | None:
        """Return what asks the model about changed images; None if no checks are wanted, or none are possible."""
        grader = snapshot.evaluation.grader
        reading = grader.reading
        one_verdict = reading is not None and reading != VERDICTS and grader.rows_per_example == 1
        if self.hurried or self.counterfactuals is False or reading is None or not one_verdict:
            return None
        return ChangedImages(snapshot.trainer, snapshot.reader(), reading, grader.logit_columns)

    def _report_kept(self, kept: Mapping[int, Tensor]) -> None:
        ids = "The ids of the examples are not the indices of the dataset"
        if not kept:
            self.say_once(f"{ids}: no pictures.")
            return
        self.say_once(
            f"{ids}, so that images cannot be read again: pictures show {len(kept)} images that were kept as they"
            f" passed, with {KEPT_SIDE} pixels at most, and no heat maps.",
            rank_zero_info,
        )

    def _inputs(
        self,
        snapshot: AnalysisSnapshot,
        ranks: Communicator,
        deadline: Deadline | None,
        kept: Mapping[int, Tensor] | None,
    ) -> PictureInputs | None:
        """Return the inputs of the pictures on the first process. Collective.

        Args:
            snapshot: The analysis.
            ranks: The processes.
            deadline: When to finish.
            kept: The only images there are, by id; None: the dataset can be indexed.
        """
        encoder = None if self.trees is None else self.trees.encoder
        robust = encoder if kept is None and encoder is not None and gives_maps(encoder) else None
        result, embeddings = snapshot.result, snapshot.evaluation.embeddings

        # the embeddings of displayed groups and browsed examples, gathered on the first process
        members = torch.empty(0, dtype=torch.int64) if robust is None else displayed_members(result, self.worst_k)
        browsed = browsed_ids(result.table, seed=self.seed, among=None if kept is None else list(kept))
        sampled_ids = snapshot.grades.ids[snapshot.sampled]
        compared = card_members(result, snapshot.grades, snapshot.sampled) if kept is None else browsed
        wanted = torch.unique(torch.cat([members, browsed, compared]))
        wanted = wanted[torch.isin(wanted, sampled_ids)]
        features = embeddings.embeddings_on_first(self.trees, members) if len(members) else None
        of_directions = embeddings.embeddings_on_first(self.directions, wanted) if len(wanted) else None
        if not ranks.is_first:
            return None

        grader = snapshot.evaluation.grader
        images = snapshot.reader().images if kept is None else partial(kept_images, kept)
        return PictureInputs(
            images=_until(deadline, images) if self.hurried and deadline is not None else images,
            robust=robust,
            features=EmbeddingTable.of(members, features),
            embeddings=EmbeddingTable.of(wanted, of_directions),
            captions=self.captions(snapshot.grades.class_names, has_names=grader.has_names),
            browsed=browsed,
            store=None if self.trees is None else self.trees.store,
            deadline=deadline,
            names=self._names(snapshot.folder),
            model=self._model(snapshot) if kept is None else None,
            attacks=self.attacks,
            live=partial(_live_features, snapshot) if kept is None else None,
        )

    def _with_null_scores(
        self, snapshot: AnalysisSnapshot, ranks: Communicator, deadline: Deadline | None
    ) -> AnalysisResult:
        """Return the result with the CV scores that chance gives for the worst classes. Collective."""
        result, grades = snapshot.result, snapshot.grades
        if self.directions is None or result.directions is None or self.null_permutations == 0:
            return result
        report = result.report
        classes = classes_to_caption(report.classes, CLASSES_WITH_NULL_SCORES)
        rows = snapshot.sampled & np.isin(grades.labels.numpy(), classes)
        owned = [owned_rows(grades, rank, ranks.world_size, sampled=rows) for rank in range(ranks.world_size)]
        ids_of_ranks = [torch.unique(grades.ids[mask]) for mask in owned]
        embeddings = snapshot.evaluation.embeddings.embeddings_of(self.directions, ids_of_ranks)
        if embeddings is None:
            return result

        share = Partition.of(grades, rows, ranks)
        values = RowValues.of(embeddings, grades, share.rows, "embeddings")
        share, values, _ = share.without_missing(values, grades.ids)
        extended = None if deadline is None else Deadline.after(max(deadline.left, MIN_NULL_SECONDS))
        entries, n_skipped, failed = add_null_cv_scores(
            report.classes,
            result.directions,
            members_of(grades, sampled=share.sampled),
            values,
            classes,
            share,
            permutations=self.null_permutations,
            seed=self.seed,
            device=self.device,
            deadline=extended,
        )
        notes = (*report.notes, *failed)
        if n_skipped:
            notes = (*notes, f"Which CV scores chance gives was not found for {n_skipped} classes: time was short.")
        return result.with_report(classes=entries, notes=notes)

    def _names(self, folder: Path) -> FeatureNames:
        """Return the names that people gave to features; a file that cannot be read is reported and ignored."""
        if self.trees is None:
            return FeatureNames()
        try:
            path = self.feature_names or folder / FEATURES_FILE
            return FeatureNames.load(path, encoder=self.trees.encoder.fingerprint)
        except ConfigurationError as error:
            self.say_once(f"FailureModes cannot read the names of features: {error}")
            return FeatureNames()


def _live_features(snapshot: AnalysisSnapshot) -> LiveFeatures:
    """Return the penultimate features of the live model, if they are those of the analysis.

    Raises:
        ConfigurationError: There is no sparse layer, or the weights have changed since.
    """
    found, trainer = sparse_report(snapshot.result.report), snapshot.trainer
    if found is None or found.head is None:
        raise ConfigurationError("the last layer of the model is not known")
    if model_fingerprint(trainer.lightning_module, found.head) != found.fingerprint:
        raise ConfigurationError("the weights of the model have changed since the analysis")
    reader = snapshot.reader()
    example = next(iter(reader.read(snapshot.grades.ids[:1].tolist())))
    space = reader.reader.space(reader.dataset)
    return LiveFeatures(trainer, found.head, space, reader.images_of(example.record))


def _until(
    deadline: Deadline, images: Callable[[Sequence[int]], Sequence[Tensor]]
) -> Callable[[Sequence[int]], Sequence[Tensor]]:
    """Return a reader of images that raises a TimeoutError after the deadline."""

    def read(ids: Sequence[int]) -> Sequence[Tensor]:
        if deadline.passed:
            raise TimeoutError("there is no time after the interruption")
        return images(ids)

    return read
