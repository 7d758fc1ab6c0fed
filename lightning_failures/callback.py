"""The callback: what happens when, in the life of a Trainer. Every idea that it calls on lives in another file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.core.budget import Deadline
from lightning_failures.core.rng import isolated_rng
from lightning_failures.data.grades import BatchRecord
from lightning_failures.data.grading import Task
from lightning_failures.encoders import Encoder
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.encoders.cached import DEFAULT_ENCODER, CachedEncoder, name_of, open_cached_encoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Intervention
from lightning_failures.methods import methods_for
from lightning_failures.report.feature_names import FeatureNames
from lightning_failures.steering.controller import InterventionController
from lightning_failures.steering.forks.from_trainer import fork_finished_training, save_start_of_forks
from lightning_failures.steering.training_view import training_view
from lightning_failures.trainer.batch_grader import BatchGrader
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.embedding_budget import EmbeddingBudget
from lightning_failures.trainer.epoch_end import AnalysisRunner, LoaderAnalysis
from lightning_failures.trainer.evaluation_pass import EmbeddingPass, EvaluationPass
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.index_recorder import IndexRecorderHook, dataset_of, evaluation_loaders
from lightning_failures.trainer.logits_hook import LogitsObserver
from lightning_failures.trainer.metric_keys import KeyLog
from lightning_failures.trainer.options import (
    AdvancedOptions,
    DataOptions,
    PictureOptions,
    check_options,
    merge_former_spellings,
)
from lightning_failures.trainer.penultimate import (
    PenultimateFeatures,
    PenultimatePass,
    penultimate_features,
    with_ids,
)
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.run_folder import discard_temporary, failures_folder
from lightning_failures.trainer.schedule import RunState, is_due

__all__ = ["AdvancedOptions", "DataOptions", "FailureModes", "PictureOptions"]


class FailureModes(Callback):
    """Tells, after validation, on which kinds of images the model fails, in words and pictures.

    It grades every example in ``on_validation_batch_end`` and embeds the images that its cache does not know;
    it analyses and logs in ``on_validation_epoch_end``, before ``ModelCheckpoint`` and ``EarlyStopping`` read
    their keys. It does the same in ``trainer.validate`` and ``trainer.test``. Without ``interventions`` nothing of the
    training changes: weights, RNG streams, modes and hooks are as they would be without it.

    A wrong option, or an encoder that you name and that cannot be had, is an error at set-up; what is configured
    wrongly for the batches is one in the sanity check, ``trainer.validate`` and ``trainer.test``. Any other error of
    an analysis is a warning: the analysis is skipped, training goes on. ``docs/using.md`` tells more.

    Not supported: validation loaders combined in another mode than "sequential" (an error), pictures for iterable
    datasets (left out), modules sharded over processes when the logits must come from a second forward.

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
        captions: Words of the candidate captions: the name of a packaged vocabulary ("general", "cifar10", "digits"),
            the path of a YAML file, a :class:`~lightning_failures.captions.CaptionVocabulary`, or None for no captions.
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
            images of single examples are read.
        logits_from: Name of the submodule whose output is the logits.
        normalization: ``(mean, std)`` of the image batches, in units of [0, 1]. None reads it off the dataset's
            transforms; without any, images must be in [0, 1] or uint8.
        reference: Embeddings that standardise all others: ``"validation"`` (the examples that are analysed), or
            ``"train"`` for a fixed hash sample of at most 20,000 training images, after the training transforms.
        on_error: ``"warn"``: a failing analysis is skipped; ``"raise"``: any error stops the run (scripts, tests).
        data: Task, sources and metadata of the examples: :class:`~lightning_failures.callback.DataOptions`.
        advanced: Options that few people change: :class:`~lightning_failures.callback.AdvancedOptions`.
        **former: Options of ``data``, ``pictures`` and ``advanced`` given by themselves, as in version 0.1. All but
            ``every_n_validations`` and ``min_coverage`` are deprecated.

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
        captions: str | Path | CaptionVocabulary | None = "general",
        pictures: bool | PictureOptions = True,
        time_budget: float | str | None = None,
        read_batch: Callable[[Any, Any], BatchRecord] | None = None,
        logits_from: str | None = None,
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
        reference: Literal["validation", "train"] = "validation",
        on_error: Literal["warn", "raise"] = "warn",
        data: DataOptions | None = None,
        advanced: AdvancedOptions | None = None,
        **former: Any,
    ) -> None:
        super().__init__()
        data, draws, drawing, advanced = merge_former_spellings(data, pictures, advanced, **former)
        self.encoder = encoder
        self.robust_encoder = robust_encoder
        self.class_names = None if class_names is None else tuple(class_names)
        self.interventions = interventions
        self.verdict = verdict
        self.every_n_epochs = every_n_epochs
        self.captions = captions
        self.pictures = draws
        self.time_budget = time_budget
        self.read_batch = read_batch
        self.logits_from = logits_from
        self.normalization = normalization
        self.reference = reference
        self.on_error = on_error
        # the options of the groups, each under its own name
        self.task: Task | None = data.task
        self.groups_from = data.groups_from
        self.metadata = data.metadata
        self.pictures_every_n = drawing.every_n
        self.feature_names = None if drawing.feature_names is None else Path(drawing.feature_names).expanduser()
        self.every_n_validations = advanced.every_n_validations
        self.min_coverage = advanced.min_coverage
        self.auto_rollback = advanced.auto_rollback
        self.memory_budget = advanced.memory_budget
        self.worst_k = advanced.worst_k
        self.n_directions = advanced.n_directions
        self.permutations = advanced.permutations
        self.cache_folder = advanced.cache_folder
        self.device = advanced.device
        self.seed = advanced.seed
        self.last_report: AnalysisResult | None = None
        check_options(self)
        self.metadata, self.interventions = tuple(self.metadata), tuple(interventions)

        self._tap = IndexRecorderHook()
        self._observer = LogitsObserver(logits_from)
        self._ranks = Communicator()
        self._reader = BatchReader(read_batch, normalization)
        self._batch_grader = BatchGrader(self._reader, self._tap, self._observer)
        self._steering = InterventionController(
            interventions,
            reader=self._reader,
            seed=self.seed,
            groups_from=self.groups_from,
            auto_rollback=self.auto_rollback,
            lottery=verdict == "lottery",
            say_once=self._say_once,
        )
        self._budget = EmbeddingBudget(time_budget, self.memory_budget, self._say_once)
        self._explainer: AnalysisRunner | None = None
        self._folder: Path | None = None
        self._keys = KeyLog(worst_k=self.worst_k, min_coverage=self.min_coverage, say_once=self._say_once)
        self._said: set[str] = set()
        # one validation
        self._active = False
        self._loaders: list[Any] = []
        self._passes: dict[int, EvaluationPass] = {}
        self._penultimate: dict[int, PenultimatePass] = {}
        self._error: str | None = None
        self._seconds: float | None = None  # for one loader
        self._state = RunState()

    # -- life cycle ------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Two instances in one Trainer are told apart by what they look through."""
        return self._generate_state_key(encoder=name_of(self.encoder), robust_encoder=name_of(self.robust_encoder))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the options, load the encoders, and join the loaders and the module."""
        if stage not in ("fit", "validate", "test"):
            return
        if stage == "fit" and trainer.global_step == 0:  # a checkpoint is restored later
            self._state = RunState()
            self._steering.reset()
        self._budget.reset()
        self._ranks.open()
        with self._ranks.synchronized():
            self._prepare(trainer)

    def _prepare(self, trainer: Trainer) -> None:
        self._steering.check(trainer)
        device = torch.device(self.device) if self.device is not None else trainer.strategy.root_device
        cache = EmbeddingCache(self.cache_folder)
        if self.feature_names is not None:
            FeatureNames.load(self.feature_names, encoder="")  # what is wrong is told before the first batch
        encoders: dict[str, CachedEncoder] = {}
        for option in ("encoder", "robust_encoder"):
            opened = open_cached_encoder(getattr(self, option), cache, device=device, robust=option == "robust_encoder")
            cached = self._on_all_ranks(opened)
            if cached is not None:
                encoders[option] = cached
        self._explainer = AnalysisRunner(
            methods=[(method, method.fitter(self)) for method in methods_for(self)],
            encoders=encoders,
            vocabulary=None if self.captions is None else CaptionVocabulary.load(self.captions),
            reader=self._reader,
            reference=self.reference,
            permutations=self.permutations,
            n_directions=self.n_directions,
            worst_k=self.worst_k,
            feature_names=self.feature_names,
            seed=self.seed,
            say_once=self._say_once,
        )
        if self.robust_encoder is None:
            self._say_once("FailureModes(robust_encoder=None): no failure trees.", rank_zero_info)
        self._folder = None
        self._check_monitored(trainer)
        self._tap.attach(trainer, self._attach_steering if self._steering.on else None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Schedulers, and submodules that the module's own ``setup`` builds, are known only now."""
        self._check_monitored(trainer)
        self._batch_grader.attach(pl_module)
        assert self._explainer is not None
        self._steering.check_encoder(self._explainer.directions, pl_module)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first validation; a tuner may have changed the loaders since ``setup``."""
        self._tap.attach_to_prepared(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Likewise; the training loaders are known only now."""
        self._tap.attach_to_prepared(trainer)
        self._steering.check_loaders(trainer)
        self._steering.heads.begin(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The sampler draws this epoch."""
        self._budget.begin_epoch()
        with self._policy(trainer, "the start of an epoch", "the rollback"):
            self._steering.begin_epoch(trainer, self._ranks)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Where only the head is trained."""
        self._steering.heads.drop_gradients(pl_module, optimizer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All layers are trained again; what is forked later is kept."""
        self._budget.end_epoch(trainer)
        self._steering.end_epoch(trainer)
        if self.verdict == "fork" and self._steering.record.first_epoch == trainer.current_epoch + 1:
            with self._policy(trainer, "the end of an epoch", "the checkpoint of the forks"):
                save_start_of_forks(trainer, self._steering.folder)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training is over: draw its last analysis, and fork it."""
        with self._policy(trainer, "the last analysis", "its pictures"), self._ranks.synchronized(), isolated_rng():
            if self.pictures and self._explainer is not None:
                for index in self._explainer.undrawn:
                    result = self._explainer.draw(index, self._ranks, seconds=self._picture_seconds(trainer))
                    self.last_report = result if index == 0 else self.last_report
        with self._policy(trainer, "the end of the training", "the rollback"):
            self._steering.undo(trainer, self._ranks)
        if self.verdict == "fork" and self._folder is not None and self.last_report is not None:
            explainer = self._explainer
            self._detach()
            with self._policy(trainer, "the forks", "their verdict"):
                verdict = fork_finished_training(
                    trainer, pl_module, self, folder=self._steering.folder, began=self._steering.record.began
                )
                self.last_report = self._steering.write_verdict(self.last_report, verdict, self._folder)
                if explainer is not None and trainer.is_global_zero:
                    explainer.write_verdict(self.last_report, self._folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the last batch the sampler draws the next epoch, in a resumed run too."""
        self._steering.schedule.epoch = trainer.current_epoch + int(trainer.is_last_batch)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the loaders and the module as they were."""
        self._detach()
        discard_temporary(self._folder)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave as in ``teardown``, which Lightning does not call after an exception."""
        self._detach()
        discard_temporary(self._folder)

    def _detach(self) -> None:
        self._tap.detach()
        self._steering.detach()
        self._batch_grader.detach()
        self._ranks.close()
        self._forget()
        self._explainer = None

    def _on_all_ranks(self, cached: CachedEncoder | None) -> CachedEncoder | None:
        """The lens, if every process has it, and the same."""
        prints = self._ranks.gather_objects(None if cached is None else cached.encoder.fingerprint)
        if None in prints:
            return None
        assert cached is not None
        if len(set(prints)) > 1:
            raise ConfigurationError(
                f"FailureModes: the processes have different weights of {cached.encoder.name} (fingerprints"
                f" {', '.join(sorted({str(one) for one in prints}))}). Give all of them the same file."
            )
        return cached

    def _check_monitored(self, trainer: Trainer) -> None:
        # the default encoder may be out of reach; then its keys stay at their worst value
        self._keys.check(
            trainer,
            [method.name for method in methods_for(self)],
            interventions=self._steering.on,
        )

    # -- penultimate features --------------------------------------------------------------------------------

    def keep_penultimate_features(self, head: str | None = None) -> None:
        """Keep the penultimate features of the examples that are graded, from the next validation or test on.

        Penultimate features are the input of the submodule that computes the logits. Without this call none are kept.

        Args:
            head: Name of that submodule, or None to find it.
        """
        self._batch_grader.keep_penultimate_features(head)

    def evaluation_features(self, dataloader_idx: int = 0) -> PenultimateFeatures:
        """Return the penultimate features of the last analysed validation or test: those that this rank graded.

        Raises:
            ConfigurationError: No features were kept.
        """
        if dataloader_idx not in self._penultimate:
            raise ConfigurationError(
                f"No penultimate features of loader {dataloader_idx} were kept. Call keep_penultimate_features() before"
                " a validation that is analysed."
            )
        return self._penultimate[dataloader_idx].features(self._batch_grader.head or "")

    def training_features(
        self, trainer: Trainer, pl_module: LightningModule, *, head: str | None = None
    ) -> PenultimateFeatures:
        """Return the penultimate features of this rank's share of the training set, by a pass in eval mode.

        Examples are read as interventions read them: each once, through ``train_analysis_dataset`` if there is one.
        The modes of all submodules, the random streams and the hooks of the model stay as they are.

        Args:
            trainer: A Trainer that is fitting the model.
            pl_module: The model.
            head: Name of the submodule that computes the logits, or None to find it.

        Raises:
            ConfigurationError: The training loader is not supported, or the head cannot be found.
        """
        view = training_view(trainer, trainer.train_dataloader, self._reader, seed=self.seed)
        ids = range(self._ranks.rank, len(view), self._ranks.world_size)
        return penultimate_features(pl_module, with_ids(ids, view.batches(ids)), head=head, trainer=trainer)

    # -- one validation or test ------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this validation is analysed."""
        self._batch_grader.attach(pl_module)
        self._budget.pause()
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._state.validations += 1
        self._begin(trainer, due=is_due(trainer, self._state, self.every_n_epochs, self.every_n_validations))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A test is always analysed."""
        self._batch_grader.attach(pl_module)
        self._begin(trainer, due=True)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch what the step computes."""
        if self._active:
            self._batch_grader.begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Grade the batch, and embed the images that the cache does not know."""
        if self._active and self._error is None:
            with self._policy(trainer, f"batch {batch_idx} of loader {dataloader_idx}"):
                self._collect(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._batch_grader.end()

    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse and log."""
        if trainer.sanity_checking:
            self._forget()
            return
        if self._active:
            self._conclude(trainer, pl_module)
        else:
            self._state.analysis_age += 1
        self._keys.promise(trainer, pl_module, self._state.last_values, self._state.analysis_age)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The training goes on."""
        self._budget.resume()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse and log."""
        self._conclude(trainer, pl_module)

    def _begin(self, trainer: Trainer, *, due: bool) -> None:
        self._forget()
        self._active, self._error = due, None
        self._keys.begin()
        if due:
            with self._policy(trainer, "the loaders"):
                self._find_folder(trainer)  # collective
                self._loaders = evaluation_loaders(trainer)
                self._seconds = self._budget.seconds_per_loader(trainer, loaders=len(self._loaders))
                for cached in self._explainer.cached_encoders if self._explainer is not None else ():
                    cached.store.close_unused()

    def _find_folder(self, trainer: Trainer) -> Path:
        if self._folder is None:
            self._folder, self._state.run_id = failures_folder(trainer, self._ranks, run_id=self._state.run_id)
        return self._folder

    def _forget(self) -> None:
        """Let the loaders and rows of one validation go."""
        self._active, self._loaders, self._passes = False, [], {}

    def _collect(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> None:
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
            self._say_once("Batches hold no images that FailureModes can find, so it only grades. Give read_batch.")
            return
        space = self._batch_grader.image_space(loader)
        if trainer.sanity_checking:
            space.to_unit(graded.images)  # only checks that it can be undone
        else:
            embeddings.embed(graded.images, space, graded.ids, rows_per_example=grader.rows_per_example)

    def _conclude(self, trainer: Trainer, module: LightningModule) -> None:
        """Analyse every loader. All ranks walk the same path."""
        self._state.analysis_age += 1
        states = self._ranks.gather_objects((self._error, sorted(self._passes)))
        errors = [error for error, _ in states if error is not None]
        if errors and self._error is None:
            rank_zero_warn(f"FailureModes skips this analysis on all ranks: {errors[0]}")
        pictures = self._wants_pictures(trainer)
        for index in sorted({index for _, indices in states for index in indices}) if not errors else ():
            with self._policy(trainer, f"the analysis of loader {index}"):
                with self._ranks.synchronized(), isolated_rng():
                    result = self._analyse_loader(trainer, index, pictures=pictures)
                    self._keys.log(trainer, module, result.report, index, self._state.last_values)
                self._accept(trainer, result, index)
        self._forget()

    def _analyse_loader(self, trainer: Trainer, index: int, *, pictures: bool) -> AnalysisResult:
        """Analyse one loader, let the interventions act, write; the same on every rank."""
        assert self._explainer is not None
        runner, ranks = self._explainer, self._ranks
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
            deadline=None if self._seconds is None else Deadline.after(self._seconds - evaluation.embeddings.seconds),
        )
        if steered:
            analysis = self._act(trainer, analysis)
        result = runner.publish(
            trainer, analysis, ranks, folder=folder if index == 0 else folder / f"dataloader_{index}"
        )
        if pictures and not analysis.in_time:
            self._say_once(
                "FailureModes draws no pictures: the time budget is spent. Give more, or draw in `validate`."
            )
        elif pictures:
            result = runner.draw(index, ranks, seconds=self._picture_seconds(trainer)) or result
        return result

    def _attach_steering(self, trainer: Trainer, loader: object) -> None:
        self._steering.attach(trainer, loader, self._find_folder(trainer))

    def _act(self, trainer: Trainer, analysis: LoaderAnalysis) -> LoaderAnalysis:
        """Let the interventions decide for the next epoch; an error leaves the report, and the plans, as they are."""
        with self._policy(trainer, "the interventions", "their decision"), self._ranks.synchronized():
            cached = None if self._explainer is None else self._explainer.directions
            result = self._steering.act(
                trainer, analysis.result, analysis.discovery, cached, self._ranks, min_coverage=self.min_coverage
            )
            return replace(analysis, result=result)
        return analysis

    def _accept(self, trainer: Trainer, result: AnalysisResult, index: int) -> None:
        """Keep what the analysis of one loader found, the same on every rank."""
        if index == 0:
            self.last_report = result
            self._state.analyses += 1
            if result.report.coverage >= self.min_coverage:
                self._state.analysis_age = 0
            if trainer.state.fn == "fit":
                self._state.last_epoch = trainer.current_epoch

    @contextmanager
    def _policy(self, trainer: Trainer, where: str, what: str = "this analysis") -> Iterator[None]:
        """Analysis never kills a training run; but where none is under way, what is configured wrongly is an error."""
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        try:
            yield
        except Exception as error:
            if self.on_error == "raise" or (not training and isinstance(error, ConfigurationError)):
                raise
            self._error = f"{where}: {type(error).__name__}: {error}"
            warnings.warn(f"FailureModes skips {what}. In {self._error}", stacklevel=2)

    def _say_once(self, message: str, say: Callable[[str], None] = rank_zero_warn) -> None:
        if message not in self._said:
            self._said.add(message)
            say(message)

    def _new_pass(self, trainer: Trainer, index: int) -> EvaluationPass:
        assert self._explainer is not None
        cached_encoders = self._explainer.cached_encoders
        dims = sum(cached.encoder.dim for cached in cached_encoders)
        grader = Grader(
            dataset=dataset_of(self._loaders[index]),
            class_names=self.class_names,
            task=self.task,
            ranks=self._ranks,
            groups_from=self.groups_from,
            metadata=self.metadata,
        )
        embeddings = EmbeddingPass(
            cached_encoders=cached_encoders,
            ranks=self._ranks,
            budget=self._budget.sample_budget(trainer, index, self._seconds, dims),
            gathers_all=self._steering.on,
            seed=self.seed,
        )
        return EvaluationPass(grader, embeddings)

    def _wants_pictures(self, trainer: Trainer) -> bool:
        """Now; the last analysis of a training is drawn when it is over, unless an exception or Ctrl-C ends it."""
        by_turn = self.pictures_every_n is not None and (self._state.analyses + 1) % self.pictures_every_n == 0
        return self.pictures and (trainer.state.fn != "fit" or by_turn)

    def _picture_seconds(self, trainer: Trainer) -> float | None:
        """Half an epoch for what can be left out; writing the rest takes its time too."""
        epoch = self._budget.epoch_seconds(trainer)
        return None if epoch is None else epoch / 2

    def prepare_fork(self, stop_epoch: int | None = None) -> None:
        """Configure this callback for a fork: raise errors, draw no pictures, roll nothing back, fork nothing itself.

        Args:
            stop_epoch: First epoch for which no decision is made any more. None keeps the configured one.
        """
        self.on_error, self.verdict, self.pictures = "raise", None, False
        self.interventions = self._steering.prepare_fork(stop_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Plain values only, so that checkpoints load with ``weights_only=True``."""
        return self._state.to_dict() | ({"steering": self._steering.state_dict()} if self._steering.on else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self._state = RunState.from_dict(state_dict)
        if "steering" in state_dict:
            self._steering.load_state_dict(state_dict["steering"])
