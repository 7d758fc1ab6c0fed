"""Decision values of the whole training set after an analysis, and the round of decisions that uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.analysis.diagnosis import MOST_TRAINING_EXAMPLES, TrainingExamples, add_diagnoses
from lightning_failures.core.arrays import as_array
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.rng import isolated_rng
from lightning_failures.core.text import listed_ids
from lightning_failures.data.class_names import ALL
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import RowValues
from lightning_failures.data.partition import SINGLE_PROCESS, Partition
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.directions.result import FailureDirections
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Intervention, JudgedExamples
from lightning_failures.interventions.base import LEFT_OUT, EarlyAnswers
from lightning_failures.steering.class_order import pool_in_class_order
from lightning_failures.steering.early_answers import EarlyAnswersStore, answers_of_all
from lightning_failures.steering.last_layer import LastLayerReader
from lightning_failures.steering.loader_patch import original_dataset
from lightning_failures.steering.round import TrainingRound
from lightning_failures.steering.training_view import ExamplesView, pool_view, training_view
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.dataset_attributes import class_list_problem, dataset_attribute, dataset_class_names
from lightning_failures.trainer.epoch_end import LoaderAnalysis
from lightning_failures.trainer.example_reader import training_loaders
from lightning_failures.trainer.feature_store import FeatureStore
from lightning_failures.trainer.index_recorder import dataset_of
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.reading_ways import VIEW


class TrainingJudge:
    """Judges the training set by the directions of each analysis, and keeps its views of training set and pools.

    Args:
        reader: Reads training batches.
        seed: Seed of random transforms and of all draws of a round.
        groups_from: Attribute of the training set with the source of each example, or None.
        features: Penultimate features of the training set.
        say_once: Emits each distinct message at most once.
        feature_names: File with names and tags of features, or None.

    Attributes:
        notes: Sentences of the last round for the report, on training examples that were left out.
    """

    def __init__(
        self,
        reader: BatchReader,
        *,
        seed: int,
        groups_from: str | None,
        features: FeatureStore,
        say_once: Callable[..., None],
        feature_names: Path | None = None,
    ) -> None:
        self._feature_names = feature_names
        self._reader, self._seed, self._groups_from, self._say_once = reader, seed, groups_from, say_once
        self._features = features
        self._dataset: Any = None
        self._view: ExamplesView | None = None  # of the dataset
        self._pool_views: dict[int, ExamplesView] = {}
        self._judged: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None  # labels (N,) and keys (N, 2)
        self.notes: tuple[str, ...] = ()

    def reset(self) -> None:
        """Forget the training set and the pools."""
        self._features.clear()
        self._dataset, self._view, self._pool_views, self._judged = None, None, {}, None

    def check_loaders(self, trainer: Trainer) -> None:
        """Raise an error for loaders that interventions cannot work with.

        Raises:
            ConfigurationError: There are several training loaders, the view does not fit the training set, or training
                and validation differ in their classes or share one loader.
        """
        self._current_view(trainer, trainer.train_dataloader)
        if trainer.val_dataloaders is None:
            return
        (training,) = flat_loaders(trainer.train_dataloader)
        others = {"training set": original_dataset(training)}
        for loader in flat_loaders(trainer.val_dataloaders)[:1]:
            if problem := class_list_problem(dataset_of(loader), others):
                raise ConfigurationError(f"FailureModes(interventions=...): {problem}")
        if any(loader is training for loader in flat_loaders(trainer.val_dataloaders)):
            raise ConfigurationError(
                "FailureModes(interventions=...): training and validation share one DataLoader, whose draws would"
                " be changed for both. Give each its own."
            )

    def judge(
        self,
        trainer: Trainer,
        analysis: LoaderAnalysis,
        cached: CachedEncoder,
        ranks: Communicator,
        reasons: Sequence[str | None],
        *,
        slice_of: Callable[[Grades], Tensor | None],
        drops_harmful: bool,
    ) -> Callable[[Path], TrainingRound]:
        """Compute decision values of all training examples; return the round of decisions by folder. Collective.

        Args:
            trainer: The Trainer.
            analysis: The analysis of the discovery part.
            cached: Encoder of the directions.
            ranks: The processes.
            reasons: K strings or None, why a class is left unchanged.
            slice_of: Returns the ids of the frozen slice in the grades of a part, or None.
            drops_harmful: Whether a new last layer that does harm on the decision part is to be dropped.

        Raises:
            ConfigurationError: Most labels of the training set are no index of a class.
        """
        result, reading = analysis.result, analysis.evaluation.grader.reading
        assert result.directions is not None
        assert reading is not None
        report, directions = result.report, result.directions
        view, dataset, groups, (labels, values, keys) = self._read(trainer, report, directions, cached, ranks)
        names = tuple(entry.name for entry in report.classes)
        outside = (labels < 0) | (labels >= len(names))
        if outside.sum() * 2 > len(labels):
            raise ConfigurationError(
                f"Labels of the training set range from {labels.min()} to {labels.max()}, but there are"
                f" {len(names)} classes."
            )
        self.notes = ()
        if outside.any():
            labels, values = np.where(outside, LEFT_OUT, labels), np.where(outside, np.float32(np.nan), values)
            note = (
                f"{outside.sum()} of {len(labels)} training examples take no part in interventions, because they have"
                f" no embedding or no label of a class: {listed_ids(np.flatnonzero(outside).tolist())}."
            )
            self.notes = (note,)
            self._say_once(f"FailureModes: {note}")
        has_groups = groups is not None and len(groups) == len(labels)
        layer_reader = LastLayerReader(
            trainer,
            ranks,
            self._features,
            view,
            analysis,
            classes=len(names),
            seed=self._seed,
            slice_of=slice_of,
            drops_harmful=drops_harmful,
        )
        return lambda folder: TrainingRound(
            epoch=(report.epoch or 0) + 1,
            seed=self._seed,
            folder=folder,
            report=report,
            directions=directions,
            discovery=analysis.discovery,
            progress=_shows_progress(trainer),
            trainer=trainer,
            cached=cached,
            ranks=ranks,
            view=view,
            examples=JudgedExamples(labels, values, names, tuple(reasons)),
            keys=keys,
            groups=np.asarray(groups) if has_groups else None,
            training_classes=dataset_class_names(dataset),
            pool_views=self._pool_views,
            say_once=self._say_once,
            reading=reading,
            layer_reader=layer_reader,
            feature_names=self._feature_names,
        )

    def keep_early(
        self,
        trainer: Trainer,
        analysis: LoaderAnalysis,
        ranks: Communicator,
        interventions: Mapping[str, Intervention],
        store: EarlyAnswersStore,
    ) -> None:
        """Keep the answers of the model on training set and pools for interventions that want them now. Collective.

        Args:
            trainer: The Trainer, in a validation of its training.
            analysis: The analysis of the discovery part.
            ranks: The processes.
            interventions: Name -> intervention.
            store: Keeps the answers.
        """
        if all(one.wants_early is None for one in interventions.values()):
            return
        reading = analysis.evaluation.grader.reading
        assert reading is not None
        names = [entry.name for entry in analysis.result.report.classes]
        training, dataset, _ = ranks.run_all(lambda: self._open(trainer))
        self._dataset, self._view = dataset, training

        def answers(pool: Any, view: Any) -> EarlyAnswers:
            examples = training
            if pool is not None:
                ordered = pool_in_class_order(pool, view, dataset_class_names(dataset), names)
                examples = self._pool_views.setdefault(id(pool), pool_view(*ordered, training))
            return answers_of_all(trainer, reading, examples, ranks, classes=len(names))

        store.keep_due(interventions, trainer.current_epoch, answers, training_size=len(training))

    def diagnose(
        self,
        trainer: Trainer,
        analysis: LoaderAnalysis,
        cached: CachedEncoder,
        ranks: Communicator,
        *,
        judged_before: bool,
    ) -> tuple[ClassReport, ...]:
        """Return the reports of all classes, diagnosed with the training examples that were judged last. Collective.

        Until the training set is judged, and without embeddings of the discovery part, the reports stay as they are.

        Args:
            trainer: The Trainer.
            analysis: The analysis of the discovery part.
            cached: Encoder of the directions.
            ranks: The processes.
            judged_before: Whether the run that this one resumes has judged the training set, which is then read again.
        """
        report, fitted = analysis.result.report, analysis.result.directions
        classes = report.classes
        if fitted is None or (self._judged is None and not judged_before):
            return classes
        if self._judged is None:
            self._read(trainer, report, fitted, cached, ranks)
        assert self._judged is not None
        labels, keys = self._judged

        def diagnosed() -> tuple[ClassReport, ...]:
            directions, discovery, grades = analysis.result.directions, analysis.discovery, analysis.analysed
            if directions is None or discovery is None:
                return classes
            sample = np.argsort(stable_hash(np.arange(len(labels)), self._seed), kind="stable")[:MOST_TRAINING_EXAMPLES]
            cached.store.refresh()  # other processes embedded some of them
            embeddings = cached.look_up_known(torch.from_numpy(keys[sample]))
            training = TrainingExamples.of(embeddings, labels[sample], directions)
            held = analysis.sampled & np.isin(as_array(grades.ids), as_array(discovery.ids))
            values = RowValues.of(discovery.embeddings, grades, held, "embeddings")
            return add_diagnoses(
                classes, grades, directions, values, Partition.of(grades, held, SINGLE_PROCESS), training
            )

        # the embeddings of the discovery part are on the first process
        found = ranks.run_all(lambda: diagnosed() if ranks.is_first else classes)
        result: tuple[ClassReport, ...] = ranks.broadcast(found)
        return result

    def _read(
        self,
        trainer: Trainer,
        report: FailureReport,
        directions: FailureDirections,
        cached: CachedEncoder,
        ranks: Communicator,
    ) -> tuple[ExamplesView, Any, Any, tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]]:
        """Return the view, the training set, the sources, and labels, decision values and cache keys. Collective."""
        view, dataset, groups = ranks.run_all(lambda: self._open(trainer))
        self._dataset, self._view = dataset, view
        view.one_group = tuple(entry.name for entry in report.classes) == (ALL,)
        labels, values, keys = view.judge(cached, directions, ranks, progress=_shows_progress(trainer))
        self._judged = labels, keys
        return view, dataset, groups, (labels, values, keys)

    def _open(self, trainer: Trainer) -> tuple[ExamplesView, Any, Any]:
        """Return the view, the training set, and the sources of its examples."""
        loaders = training_loaders(trainer)
        view = self._current_view(trainer, loaders)
        if self._view is None and view.looks_random:
            self._say_once(
                "The transform of the training set looks random, so interventions judge one fixed draw of it. Give the"
                f" datamodule a {VIEW}: the same examples through the transform of validation."
            )
        if self._view is None and (doubt := view.doubt) is not None:
            self._say_once(doubt)
        (loader,) = flat_loaders(loaders)
        dataset = original_dataset(loader)
        groups = None if self._groups_from is None else dataset_attribute(dataset, self._groups_from)
        return view, dataset, groups

    def _current_view(self, trainer: Trainer, train_loaders: Any) -> ExamplesView:
        """Return the view of the training set, a new one if the training set is another one than before."""
        loaders = flat_loaders(train_loaders)
        if len(loaders) != 1:
            raise ConfigurationError(
                f"FailureModes(interventions=...) needs one training DataLoader, got {len(loaders)}. Join their"
                " datasets with torch.utils.data.ConcatDataset, or leave interventions out."
            )
        if self._view is not None and self._dataset is original_dataset(loaders[0]):
            return self._view
        self._dataset, self._view = None, None
        with isolated_rng():  # the user's train_analysis_dataset may draw random numbers
            return training_view(trainer, loaders[0], self._reader, seed=self._seed)


def flat_loaders(loaders: Any) -> list[Any]:
    """Return the single loaders of a Trainer's loaders, in whatever collection they are."""
    return [] if loaders is None else list(CombinedLoader(loaders, "max_size").flattened)


def _shows_progress(trainer: Trainer) -> bool:
    return getattr(trainer, "progress_bar_callback", None) is not None
