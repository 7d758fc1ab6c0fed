"""The penultimate features of the live model, as the callback gives them to users and to methods."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.budget import Deadline
from lightning_failures.errors import ConfigurationError
from lightning_failures.methods import methods_for
from lightning_failures.steering.controller import InterventionController
from lightning_failures.steering.sample_features import sample_features
from lightning_failures.steering.training_view import training_features
from lightning_failures.trainer.batch_grader import BatchGrader
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.epoch_end import AnalysisRunner
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.metric_keys import log_afterwards
from lightning_failures.trainer.model_features import ModelFeatures, names_file, spurious_features
from lightning_failures.trainer.penultimate import PenultimateFeatures, PenultimatePass
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.schedule import is_last_analysis


class FeatureAccess:
    """Methods of the callback for the penultimate features of the model that is trained."""

    _batch_grader: BatchGrader
    _penultimate: dict[int, PenultimatePass]
    _reader: BatchReader
    _ranks: Communicator
    _steering: InterventionController
    _seconds: float | None
    _folder: Path | None
    feature_names: Path | None
    logits_from: str | None
    seed: int
    _last_fitted: bool = False  # whether the methods of the last analysis ran in the last one

    def keep_penultimate_features(self, head: str | None = None) -> None:
        """Keep the penultimate features of all graded examples, from the next validation or test on.

        Args:
            head: Name of the submodule whose input they are and whose output is the logits; None: it is found.
        """
        self._batch_grader.keep_penultimate_features(head)

    def evaluation_features(self, dataloader_idx: int = 0) -> PenultimateFeatures:
        """Return the penultimate features of the last analysed validation or test: those that this rank graded.

        Raises:
            ConfigurationError: No features were kept.
        """
        if dataloader_idx not in self._penultimate:
            remedy = "Call keep_penultimate_features() before a validation that is analysed."
            raise ConfigurationError(f"No penultimate features of loader {dataloader_idx} were kept. {remedy}")
        return self._penultimate[dataloader_idx].features(self._batch_grader.head or "")

    def training_features(
        self, trainer: Trainer, pl_module: LightningModule, *, head: str | None = None
    ) -> PenultimateFeatures:
        """Return the penultimate features of this rank's share of the training set, by a pass in eval mode.

        ``head`` names the submodule that computes the logits; None: it is found. The model is left unchanged.

        Raises:
            ConfigurationError: The training loader is not supported, or the head cannot be found.
        """
        return training_features(trainer, pl_module, self._reader, self._ranks, head=head, seed=self.seed)

    def _observe_features(self) -> None:
        """Observe penultimate features if a method is on that needs them; a model without any is no error."""
        if any(one.source == "penultimate" for one in methods_for(self)) and not self._batch_grader.keeps_features:
            self._batch_grader.keep_penultimate_features(also=self.logits_from, tolerant=True)

    def _model_features(
        self, trainer: Trainer, evaluated: Any, grader: Grader, *, last: bool | None = None
    ) -> ModelFeatures:
        """Return what methods may ask of the live model in an analysis, the same on all ranks. Collective.

        Args:
            trainer: The Trainer.
            evaluated: The evaluated dataset.
            grader: The grader of its loader.
            last: Whether this is the last analysis; None: as the Trainer says.
        """
        if not self._batch_grader.keeps_features:
            return ModelFeatures()
        states = self._ranks.gather_objects((self._batch_grader.head, self._batch_grader.features_problem))
        head = next((head for head, _ in states if head is not None), None)
        training = partial(
            sample_features,
            trainer,
            self._reader,
            self._steering.features,
            self._ranks,
            head=head,
            evaluated=evaluated,
            classes=lambda: len(grader.class_names),  # decided with the grades
            conditions=lambda: grader.rows_per_example,
            seed=self.seed,
        )
        problem = next((problem for _, problem in states if problem is not None), None)
        self._last_fitted = is_last_analysis(trainer) if last is None else last
        spurious = None
        if self._last_fitted and self._folder is not None:
            spurious = spurious_features(trainer.lightning_module, head, names_file(self.feature_names, self._folder))
        return ModelFeatures(head, problem, self._last_fitted, training, spurious)

    def _fit_last(self, trainer: Trainer, runner: AnalysisRunner, former: AnalysisResult) -> AnalysisResult:
        """Fit the methods of the last analysis if it was not known to be the last (early stopping). Collective.

        Returns:
            The extended result; ``former`` itself if there is nothing to add.
        """
        snapshot = runner.snapshot(0)
        on = trainer.state.fn == "fit" and any(method.last_only for method in methods_for(self))
        if not on or self._last_fitted or snapshot is None:
            return former
        if former.report.global_step != trainer.global_step:
            reason = "the training went on after the last analysis. Call trainer.validate."
            missing = ModelFeatures(problem=reason).missing(runner.methods, ())
            return former.with_report(notes=(*former.report.notes, *missing))
        model = self._model_features(trainer, snapshot.reader().dataset, snapshot.evaluation.grader, last=True)
        deadline = None if self._seconds is None else Deadline.after(self._seconds)
        result = runner.add_last(trainer, snapshot, self._ranks, model, deadline)
        log_afterwards(
            trainer, {key: one for key, one in result.report.summary.items() if key not in former.report.summary}
        )
        return result
