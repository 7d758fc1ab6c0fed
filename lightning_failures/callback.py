"""The callback: what happens at which hook of a Trainer. The work itself is done in other files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.captions.image_to_text import CaptionsOption
from lightning_failures.core.budget import Deadline
from lightning_failures.core.rng import isolated_rng
from lightning_failures.data.class_names import names_in_order
from lightning_failures.data.grades import BatchRecord
from lightning_failures.encoders import Encoder
from lightning_failures.encoders.cached import DEFAULT_ENCODER, name_of
from lightning_failures.interventions import Intervention
from lightning_failures.methods import methods_for
from lightning_failures.report.feature_names import FeatureNames
from lightning_failures.steering.controller import InterventionController
from lightning_failures.steering.feature_access import FeatureAccess
from lightning_failures.steering.forks.from_trainer import fork_finished_training
from lightning_failures.trainer import schedule
from lightning_failures.trainer.batch_grader import BatchGrader
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.closing import say_findings
from lightning_failures.trainer.embedding_budget import EmbeddingBudget
from lightning_failures.trainer.epoch_end import AnalysisRunner, LoaderAnalysis
from lightning_failures.trainer.error_policy import ErrorPolicy
from lightning_failures.trainer.evaluation_pass import EvaluationPass
from lightning_failures.trainer.index_recorder import IndexRecorderHook, dataset_of
from lightning_failures.trainer.logits_hook import LogitsObserver
from lightning_failures.trainer.metric_keys import KeyLog
from lightning_failures.trainer.open_encoders import open_encoders
from lightning_failures.trainer.options import (
    AdvancedOptions,
    DataOptions,
    GroupedOptions,
    PictureOptions,
    check_groupings,
    check_options,
    merge_former_spellings,
)
from lightning_failures.trainer.penultimate import PenultimatePass
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.run_folder import claim_run_folder, leave_folder

__all__ = ["AdvancedOptions", "DataOptions", "FailureModes", "PictureOptions"]


class FailureModes(GroupedOptions, FeatureAccess, Callback):
    """Find, caption and track the failure modes of an image classifier while it trains.

    Every validation example is graded in ``on_validation_batch_end``, where images that are not in the cache are also
    embedded. The analysis runs in ``on_validation_epoch_end``, before ``ModelCheckpoint`` and ``EarlyStopping`` read
    their keys; ``trainer.validate`` and ``trainer.test`` are analysed in the same way. Without ``interventions`` the
    training is unchanged: weights, random streams, train/eval modes and hooks are those of a run without the callback.

    A wrong option, or a named encoder that cannot be loaded, is an error at set-up. A configuration that does not fit
    the batches is an error in the sanity check, ``trainer.validate`` and ``trainer.test``. Any other error of an
    analysis is a warning: the analysis is skipped and training continues. ``docs/using.md`` has the details.

    Not supported: validation loaders combined in another mode than "sequential" (an error), and modules sharded over
    processes if the logits need a second forward pass.

    Args:
        encoder: Image encoder of the failure directions: an open_clip tag ``"<model>/<pretrained>"``, ``"hf-hub:..."``,
            ``"local-dir:..."``, a path, ``"embedded:digits"``, ``"efficientnet-lite0"``, or an
            :class:`~lightning_failures.encoders.Encoder`. None: no directions. The default is skipped with a warning
            if it cannot be loaded; an encoder that you name must load, even if it is the same.
        robust_encoder: Adversarially robust encoder of the failure trees: a checkpoint of a robust ResNet,
            ``"embedded:digits"``, ``"efficientnet-lite0"`` (not robust), or an Encoder. None: no trees.
        class_names: One name per class; multilabel: one per condition; binary: two, or that of the positive class. None
            reads ``dataset.classes``; without it classes are "0" ... "K-1" and there are no captions.
        interventions: Changes of the training in the next epoch (:mod:`lightning_failures.interventions`,
            ``docs/interventions.md``). The validation set is then split: one part finds the failures, another, under
            ``failures/report/...``, gives the headline numbers.
        verdict: Measure whether the interventions helped. ``"fork"``: after the training, six forks are trained from
            the epoch in which they began; ``"lottery"``: half of the flagged classes are left unchanged as a control.
        every_n_epochs: Analyse in every n-th epoch, at its last validation.
        captions: Words of the candidate captions: a vocabulary ("general", "cifar10", "digits", a YAML file, object;
            "auto": the packaged one that knows all class names, or else "general"); or those that
            ``"captioner:<folder>"`` or a function from PIL images to texts says. None: no captions.
        pictures: Draw images, heat maps and feature attacks, and write the HTML report: after the last analysis of
            ``fit``, where optional parts take at most half an epoch, and always outside of ``fit``. False: numbers and
            words only; a :class:`~lightning_failures.callback.PictureOptions` also draws in between.
        time_budget: Limit on the time of an analysis: seconds, or a share of a training epoch like ``"10%"``. If it is
            too short, a sample of the examples and the classes with the most failures are analysed, and the notes of
            the report say so. Images embedded once cost nothing later, so the sample grows from validation to
            validation. Not limited: the training images that interventions and ``reference="train"`` embed, once.
            None: no limit.
        read_batch: ``(outputs, batch) -> BatchRecord``, for batches of other forms. A field that is None falls to the
            default rule. ``outputs`` is the return value of the step; None if it returns nothing, and when only the
            images of single examples are read. Tasks without classes return ``correct``, or ``score`` (higher is
            better) beside ``failed_below=0.5``.
        logits_from: Name of the submodule whose output is the logits.
        normalization: ``(mean, std)`` of the image batches, in units of [0, 1]. None reads it off the dataset's
            transforms; without any, images must be in [0, 1] or uint8.
        reference: Embeddings that standardise all others: ``"validation"`` (the examples that are analysed), or
            ``"train"`` for a fixed hash sample of at most 20,000 training images, after the training transforms.
        sparse: Refit the last layer of the model as a sparse one, and ask each error which feature did it: at the last
            analysis of ``fit`` and in ``validate`` and ``test``, on features of at most 50,000 training images
            (``docs/concepts.md``).
        on_error: ``"warn"``: a failing analysis is skipped; ``"raise"``: any error stops the run (scripts, tests).
        data: Task, sources and metadata of the examples: :class:`~lightning_failures.callback.DataOptions`.
        advanced: Options that few people change: :class:`~lightning_failures.callback.AdvancedOptions`.
        **former: Options of ``data``, ``pictures`` and ``advanced`` given by themselves, as in version 0.1. All but
            ``failed_below``, ``every_n_validations`` and ``min_coverage`` are deprecated.

    Attributes:
        last_report: The last :class:`~lightning_failures.analysis.AnalysisResult` of the first loader, or None.

    Example::

        trainer = L.Trainer(callbacks=[FailureModes(encoder="ViT-B-32/openai", robust_encoder="robust.pt")])
        trainer.fit(model, datamodule)
    """

    def __init__(
        self,
        *,
        encoder: str | Path | Encoder | None = DEFAULT_ENCODER,
        robust_encoder: str | Path | Encoder | None = None,
        class_names: Sequence[str] | None = None,
        interventions: Sequence[Intervention] = (),
        verdict: Literal["fork", "lottery"] | None = None,
        every_n_epochs: int = 1,
        captions: CaptionsOption = "general",
        pictures: bool | PictureOptions = True,
        time_budget: float | str | None = None,
        read_batch: Callable[[Any, Any], BatchRecord] | None = None,
        logits_from: str | None = None,
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
        reference: Literal["validation", "train"] = "validation",
        sparse: bool = False,
        on_error: Literal["warn", "raise"] = "warn",
        data: DataOptions | None = None,
        advanced: AdvancedOptions | None = None,
        **former: Any,
    ) -> None:
        super().__init__()
        data, draws, drawing, advanced = merge_former_spellings(data, pictures, advanced, **former)
        self.encoder, self.robust_encoder = encoder, robust_encoder
        self.class_names = None if class_names is None else tuple(names_in_order(class_names) or ())
        self.interventions = interventions
        self.verdict = verdict
        self.every_n_epochs = every_n_epochs
        self.captions, self.pictures = captions, draws
        self.time_budget = time_budget
        self.read_batch = read_batch
        self.logits_from, self.normalization = logits_from, normalization
        self.reference, self.sparse, self.on_error = reference, sparse, on_error
        self._take_groups(data, drawing, advanced)
        self.last_report: AnalysisResult | None = None
        check_options(self)
        self.metadata, self.interventions = tuple(self.metadata), tuple(interventions)
        self._build()

    def _build(self) -> None:
        """Make the parts that do the work, from the options."""
        self._errors, self._ranks = ErrorPolicy(), Communicator()
        self._index_recorder = IndexRecorderHook(self._ranks.gather_objects)
        self._reader = BatchReader(self.read_batch, self.normalization, self.failed_below, self.logits_from)
        self._batch_grader = BatchGrader(self._reader, self._index_recorder, LogitsObserver(self.logits_from))
        self._steering = InterventionController(
            self, self._reader, lottery=self.verdict == "lottery", say_once=self._errors.say_once
        )
        self._budget = EmbeddingBudget(self.time_budget, self.memory_budget, self._errors.say_once)
        self._runner: AnalysisRunner | None = None
        self._folder: Path | None = None
        self._keys = KeyLog(worst_k=self.worst_k, min_coverage=self.min_coverage, say_once=self._errors.say_once)
        # one validation
        self._active = False
        self._loaders: list[Any] = []
        self._passes: dict[int, EvaluationPass] = {}
        self._penultimate: dict[int, PenultimatePass] = {}
        self._seconds: float | None = None  # for one loader
        self._state = schedule.RunState()

    # -- life cycle ------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints, which names the encoders without their paths."""
        encoders = {"encoder": self.encoder, "robust_encoder": self.robust_encoder}
        return self._generate_state_key(**{role: schedule.short_name(name_of(one)) for role, one in encoders.items()})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the options, load the encoders, and hook into the loaders and the module."""
        if stage not in ("fit", "validate", "test"):
            return
        if stage == "fit":
            self.last_report = None
            if trainer.global_step == 0:  # a checkpoint is restored later
                self._state = schedule.RunState()
                self._steering.reset()
        self._budget.reset()
        schedule.expect_former_keys(self.state_key)
        self._ranks.open()
        with self._ranks.synchronized():
            self._prepare(trainer)

    def _prepare(self, trainer: Trainer) -> None:
        """Check the options against the Trainer, open the encoders, and hook into the loaders. Collective."""
        self._steering.check(trainer)
        check_groupings(self, trainer.world_size)
        device = torch.device(self.device) if self.device is not None else trainer.strategy.root_device
        if self.feature_names is not None:
            FeatureNames.load(self.feature_names, encoder="")  # a damaged file is an error before the first batch
        encoders = open_encoders(
            {"encoder": self.encoder, "robust_encoder": self.robust_encoder},
            self.cache_folder,
            device=device,
            ranks=self._ranks,
        )
        self._observe_features()
        self._runner = AnalysisRunner.of(self, encoders, self._reader, self._errors.say_once, self._guard)
        if self.robust_encoder is None:
            self._errors.say_once("FailureModes(robust_encoder=None): no failure trees.", rank_zero_info)
        self._folder = None
        self._check_monitored(trainer)

        def attach_steering(trainer: Trainer, loader: object) -> None:
            self._steering.attach(trainer, loader, self._find_folder(trainer), self._ranks)

        self._index_recorder.attach(trainer, attach_steering if self._steering.on else None, self._detach)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what depends on schedulers and on submodules that the module's own ``setup`` builds."""
        self._check_monitored(trainer)
        self._batch_grader.check(pl_module)
        self._steering.check_encoder(None if self._runner is None else self._runner.directions, pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook into the validation loaders, which a tuner may have changed since ``setup``."""
        self._index_recorder.attach_to_prepared(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook into the training loaders, and check them."""
        self._index_recorder.attach_to_prepared(trainer)
        self._steering.check_loaders(trainer)
        self._steering.heads.begin(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the plans of the interventions take effect in this epoch."""
        self._budget.begin_epoch()
        with self._guard(trainer, "the start of an epoch", "the rollback"):
            self._steering.begin_epoch(trainer, self._ranks)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of frozen layers while only the head is trained."""
        self._steering.heads.drop_gradients(pl_module, optimizer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the epoch of the interventions, and keep the checkpoint from which forks start."""
        self._budget.end_epoch(trainer)
        self._steering.end_epoch(trainer)
        if self.verdict == "fork":
            with self._guard(trainer, "the end of an epoch", "the checkpoint of the forks"):
                self._steering.save_start_of_forks(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the interventions act that do so when the training has ended, and revise the last report."""
        runner, former = self._runner, self.last_report
        if runner is None or former is None or self._folder is None:
            return
        with self._guard(trainer, "the last analysis", "what it adds"), self._ranks.synchronized(), isolated_rng():
            self.last_report = self._fit_last(trainer, runner, former)
            if self.last_report is not former:
                runner.revise(self.last_report, self._folder, write=trainer.is_global_zero)
                former = self.last_report
        if not self._steering.on:
            return
        where, skipped = "the end of the training", "what the interventions do then"
        with self._guard(trainer, where, skipped), self._ranks.synchronized(), isolated_rng():
            self.last_report = self._steering.conclude(
                trainer, former, runner.directions, self._ranks, folder=self._folder
            )
            runner.revise(self.last_report, self._folder, write=trainer.is_global_zero)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last analysis of the training, apply a pending rollback, and run the forks."""
        if not self._state.analyses and not self._errors.n_warned:
            self._errors.say_once(schedule.no_analysis_reason(trainer, self._state.validations, self))
        with self._guard(trainer, "the last analysis", "its pictures"), self._ranks.synchronized(), isolated_rng():
            if self.pictures and self._runner is not None:
                seconds = self._budget.picture_seconds(trainer)
                self.last_report = self._runner.draw_all(self._ranks, seconds=seconds) or self.last_report
        with self._guard(trainer, "the end of the training", "the rollback"):
            self._steering.undo(trainer, self._ranks)
        if self.verdict == "fork" and self._folder is not None and self.last_report is not None:
            runner = self._runner
            self._detach()
            with self._guard(trainer, "the forks", "their verdict"):
                verdict = fork_finished_training(
                    trainer, pl_module, self, folder=self._steering.folder, began=self._steering.record.began
                )
                self.last_report = self._steering.write_verdict(self.last_report, verdict, self._folder)
                if runner is not None and trainer.is_global_zero:
                    runner.write_verdict(self.last_report, self._folder)
        say_findings(self.last_report if self.pictures else None, self._folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set the schedule to the next epoch after the last batch, so that a resumed run draws it too."""
        self._steering.schedule.epoch = trainer.current_epoch + int(trainer.is_last_batch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the loaders and the module."""
        self._detach()
        leave_folder(trainer, self._folder)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the page of the last analysis, and detach; Lightning does not call ``teardown`` after an exception."""
        runner = self._runner
        self._detach()
        if self.pictures and runner is not None and trainer.is_global_zero:
            runner.draw_interrupted(alone=trainer.world_size == 1)
        leave_folder(trainer, self._folder)

    def _detach(self) -> None:
        self._index_recorder.detach()
        self._steering.detach()
        self._ranks.close()
        self._forget()
        self._runner = None

    def _check_monitored(self, trainer: Trainer) -> None:
        """Refuse keys that can never be logged; those of a default encoder that does not load stay at their worst."""
        self._keys.check(trainer, [one.name for one in methods_for(self)], interventions=self._steering.on)

    # -- one validation or test ------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this validation is analysed."""
        self._budget.pause()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._state.validations += 1
        due = schedule.is_due(trainer, self._state, self.every_n_epochs, self.every_n_validations)
        self._begin_validation(trainer, pl_module, due=due)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a test, which is always analysed."""
        self._begin_validation(trainer, pl_module, due=True)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Observe the logits that the step computes."""
        if self._active and self._errors.last_error is None:
            self._batch_grader.begin(trainer, pl_module, self._loaders[dataloader_idx])

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Grade the batch, and embed the images that are not in the cache."""
        if self._active and self._errors.last_error is None:
            with self._guard(trainer, f"batch {batch_idx} of loader {dataloader_idx}"):
                self._grade_batch(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._batch_grader.end()

    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse all loaders, and log what other callbacks monitor."""
        if trainer.sanity_checking:
            self._forget()
            return
        if self._active:
            self._analyse_all(trainer, pl_module)
        else:
            self._state.analysis_age += 1
        self._keys.promise(trainer, pl_module, self._state.last_values, self._state.analysis_age)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare accuracy with what the module logged in its own epoch end, and resume timing the training epoch.

        In the command ``retrain-head`` the last layer is then refitted.
        """
        if self._runner is not None:
            doubted = self._runner.add_late_doubts(trainer, lambda: self._keys.of_module(trainer))
            self.last_report = doubted.get(0, self.last_report)
        self._budget.resume()
        if self._steering.acts_after_validation:
            self.on_train_end(trainer, pl_module)

    on_test_end = on_validation_end

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse all loaders."""
        if self._active:
            self._analyse_all(trainer, pl_module)

    def _begin_validation(self, trainer: Trainer, module: LightningModule, *, due: bool) -> None:
        """Start to collect grades if the validation is due."""
        self._forget()
        due = due and self._index_recorder.all_ranks_have_batches(trainer, self._errors.say_skipped)
        self._active, self._errors.last_error = due, None
        self._keys.begin(trainer)
        if due:
            self._batch_grader.attach(module)
            with self._guard(trainer, "the loaders"):
                self._find_folder(trainer)  # collective
                self._loaders = self._index_recorder.begin_evaluation(trainer)
                self._seconds = self._budget.seconds_per_loader(trainer, loaders=len(self._loaders))
                for cached in self._runner.cached_encoders if self._runner is not None else ():
                    cached.store.close_unused()

    def _find_folder(self, trainer: Trainer) -> Path:
        """Return the folder of the run, the same on every rank. Collective at its first call."""
        if self._folder is None:
            self._folder = claim_run_folder(trainer, self._ranks, self._state)
        return self._folder

    def _forget(self) -> None:
        """Drop the loaders and grades of one validation, and the hooks on the module."""
        self._batch_grader.detach()
        self._active, self._loaders, self._passes = False, [], {}

    def _grade_batch(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> None:
        """Grade one batch and embed its images; in the sanity check only test that images can be denormalised."""
        loader = self._loaders[dataloader_idx]
        read = self._batch_grader.read(loader, outputs, batch, batch_idx)
        evaluation = self._passes.get(dataloader_idx)
        if evaluation is None:
            evaluation = self._passes[dataloader_idx] = self._new_pass(trainer, dataloader_idx)
        grader, embeddings = evaluation.grader, evaluation.embeddings
        ids = self._batch_grader.name(read, grader)
        graded = self._batch_grader.grade(read, ids, grader, trainer, module)
        if graded.features is not None:
            evaluation.penultimate.add(graded.ids, graded.features)
            self._penultimate[dataloader_idx] = evaluation.penultimate
        if not embeddings.has_encoders:
            return
        if graded.images is None:
            message = "Batches hold no images that FailureModes can find, so it only grades. Give read_batch."
            self._errors.say_once(message)
            return
        where, skipped = f"the images of loader {dataloader_idx}", "what needs their embeddings; the grades stand"
        with self._errors.guard(trainer, self.on_error, where, skipped, drops_analysis=False):
            space, rows = self._batch_grader.image_space(loader), grader.rows_per_example
            if batch_idx == 0 and (doubt := self._batch_grader.doubt(read)) is not None:
                self._errors.say_once(doubt)
            embeddings.embed(graded.images, space, graded.ids, rows_per_example=rows, check=trainer.sanity_checking)
            evaluation.keep_images(graded.images, space, graded.ids, wanted=self.pictures)

    def _analyse_all(self, trainer: Trainer, module: LightningModule) -> None:
        """Analyse every loader, on all ranks alike; an error on one rank skips the analysis on all."""
        self._state.analysis_age += 1
        states = self._ranks.gather_objects((self._errors.last_error, sorted(self._passes)))
        errors = [error for error, _ in states if error is not None]
        if errors and self._errors.last_error is None:
            rank_zero_warn(f"FailureModes skips this analysis on all ranks: {errors[0]}")
        pictures = self._wants_pictures(trainer)
        seen = sorted({index for _, indices in states for index in indices})
        for index in () if errors else seen:
            with self._guard(trainer, f"the analysis of loader {index}"):
                with self._ranks.synchronized(), isolated_rng():
                    result = self._analyse_loader(trainer, index, pictures=pictures)
                    self._keys.log(trainer, module, result.report, index, self._state.last_values)
                self._accept(trainer, result, index)
        self._forget()

    def _analyse_loader(self, trainer: Trainer, index: int, *, pictures: bool) -> AnalysisResult:
        """Analyse one loader, let the interventions act, publish; the same on every rank."""
        assert self._runner is not None
        runner, ranks = self._runner, self._ranks
        folder, loader = self._find_folder(trainer), self._loaders[index]
        evaluation = self._passes.get(index) or self._new_pass(trainer, index)
        steered = self._steering.on and index == 0 and trainer.state.fn != "test"
        analysis = runner.analyse(
            trainer,
            loader,
            index,
            evaluation,
            ranks,
            interventions=steered,
            decision=self.auto_rollback or self._keys.of_decisions,
            spent=self._steering.spends_validation,
            deadline=None if self._seconds is None else Deadline.after(self._seconds - evaluation.embeddings.seconds),
            logged=self._keys.of_module(trainer),
            model=self._model_features(trainer, dataset_of(loader), evaluation.grader),
        )
        if steered:
            analysis = self._act(trainer, analysis)
        folder = folder if index == 0 else folder / f"dataloader_{index}"
        result = runner.publish(trainer, analysis, ranks, folder=folder, run_id=self._state.id)
        if pictures and not analysis.in_time:
            self._errors.say_once(
                "FailureModes draws no pictures: the time budget is spent. Give more, or draw in `validate`."
            )
        elif pictures:
            result = runner.draw(index, ranks, seconds=self._budget.picture_seconds(trainer)) or result
        return result

    def _act(self, trainer: Trainer, analysis: LoaderAnalysis) -> LoaderAnalysis:
        """Let the interventions decide for the next epoch; an error leaves the report and all plans unchanged."""
        with self._guard(trainer, "the interventions", "their decision"), self._ranks.synchronized():
            cached = None if self._runner is None else self._runner.directions
            result = self._steering.act(trainer, analysis, cached, self._ranks, min_coverage=self.min_coverage)
            return replace(analysis, result=result)
        return analysis

    def _accept(self, trainer: Trainer, result: AnalysisResult, index: int) -> None:
        """Record a finished analysis, the same on every rank."""
        if index == 0:
            self.last_report = result
            self._state.analyses += 1
            if result.report.coverage >= self.min_coverage:
                self._state.analysis_age = 0
            if trainer.state.fn == "fit":
                self._state.last_epoch = trainer.current_epoch

    def _guard(self, trainer: Trainer, where: str, skipped: str = "this analysis") -> AbstractContextManager[None]:
        """Return a block in which an error is a warning; see :class:`~.trainer.error_policy.ErrorPolicy`."""
        return self._errors.guard(trainer, self.on_error, where, skipped)

    def _new_pass(self, trainer: Trainer, index: int) -> EvaluationPass:
        """Return an empty evaluation pass over one loader."""
        assert self._runner is not None
        encoders = self._runner.cached_encoders
        return EvaluationPass.begin(
            dataset_of(self._loaders[index]),
            encoders,
            self._ranks,
            self._budget.sample_budget(trainer, index, self._seconds, sum(one.encoder.dim for one in encoders)),
            options=self,
            gathers_all=self._steering.on,
        )

    def _wants_pictures(self, trainer: Trainer) -> bool:
        """Return whether to draw at once; the last analysis of a training is drawn in ``on_fit_end``."""
        by_turn = self.pictures_every_n is not None and (self._state.analyses + 1) % self.pictures_every_n == 0
        return self.pictures and (trainer.state.fn != "fit" or by_turn)

    def prepare_fork(self, stop_epoch: int | None = None) -> None:
        """Configure this callback for a fork: raise errors, draw no pictures, roll nothing back, fork nothing itself.

        Args:
            stop_epoch: First epoch for which no decision is made any more. None keeps the configured one.
        """
        self.on_error, self.verdict, self.pictures, self.sparse = "raise", None, False, False
        self.interventions = self._steering.prepare_fork(stop_epoch)

    def prepare_retraining(self, intervention: Intervention) -> None:
        """Configure this callback for ``retrain-head``: one intervention, which acts at the end of a validation."""
        self.on_error, self.verdict, self.pictures, self.sparse = "raise", None, False, False
        self.interventions = (intervention,)
        self._build()
        self._steering.acts_after_validation = True

    def state_dict(self) -> dict[str, Any]:
        """Return plain values only, so that checkpoints load with ``weights_only=True``."""
        return self._state.to_dict() | ({"steering": self._steering.state_dict()} if self._steering.on else {})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find the state under another key, of a former version or of another encoder."""
        schedule.adopt_state(checkpoint["callbacks"], self.state_key)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._state = schedule.RunState.from_dict(state_dict)
        if "steering" in state_dict:
            self._steering.load_state_dict(state_dict["steering"])
