"""The end of an evaluation: all processes analyse, and the first one draws pictures and writes files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.class_reports import failed_fits
from lightning_failures.analysis.copies import join_sources_of_equal_digests
from lightning_failures.analysis.diary import with_modes
from lightning_failures.analysis.method import FittableMethod
from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.captions.image_to_text import CaptionsOption, load_captions
from lightning_failures.core.budget import Deadline
from lightning_failures.core.rng import isolated_rng
from lightning_failures.data.grades import Grades
from lightning_failures.directions.fit import Doubted
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.generators.base import ImageGenerator
from lightning_failures.interventions import Discovery
from lightning_failures.interventions.validation_split import Part, part_of, take_grades
from lightning_failures.methods import Method, methods_for
from lightning_failures.methods.base import ImageReader
from lightning_failures.regression import Pin
from lightning_failures.report.diary_storage import keep_diary
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.html.library import prepare
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.caption_sources import Captions, CaptionSources
from lightning_failures.trainer.evaluation_pass import EvaluationPass
from lightning_failures.trainer.example_ids import unstable_ids
from lightning_failures.trainer.example_reader import ExampleReader
from lightning_failures.trainer.grading_notes import comparable_accuracies, grading_notes
from lightning_failures.trainer.held_out_parts import judge_parts, whole_table
from lightning_failures.trainer.late_doubts import LateDoubts
from lightning_failures.trainer.method_values import values_of_methods
from lightning_failures.trainer.model_features import ModelFeatures, names_file, with_late, with_model, with_names
from lightning_failures.trainer.options import CounterfactualsOption, load_counterfactuals
from lightning_failures.trainer.pictures.builder import AnalysisSnapshot, GalleryBuilder
from lightning_failures.trainer.pinned_slices import open_pins, with_pin_checks
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.reference_embeddings import ReferenceEmbeddings
from lightning_failures.writers import FileWriter, Writer, each_writer, writers_for

NULL_PERMUTATIONS = 20
"""Permutations for the CV scores under chance, in an analysis with pictures."""

SECONDS_AFTER_INTERRUPTION = 5.0
"""Time for the pictures of a training that was interrupted."""


@dataclass(frozen=True)
class LoaderAnalysis:
    """The analysis of one loader, the same on all ranks, and what later steps need of its evaluation pass.

    Attributes:
        result: The findings; while interventions are on, of the discovery part, beside the held-out parts.
        loader: The evaluation loader.
        index: Its number.
        grades: All graded rows.
        split: (N,) part of each row; None without interventions.
        analysed: The M rows that were analysed: the discovery part, or without interventions all.
        sampled: (M,) bool, those of them that directions and trees were fitted on.
        evaluation: The evaluation pass over the loader.
        discovery: The examples that the directions were fitted on; on the first process, while interventions are on.
        in_time: Whether the analysis ended before its deadline.
    """

    result: AnalysisResult
    loader: Any
    index: int
    grades: Grades
    split: Tensor | None
    analysed: Grades
    sampled: NDArray[np.bool_]
    evaluation: EvaluationPass
    discovery: Discovery | None
    in_time: bool


class RunnerOptions(Protocol):
    """The options of the callback that an analysis needs."""

    captions: CaptionsOption
    reference: Literal["validation", "train"]
    permutations: int
    n_directions: int
    doubted: Doubted
    worst_k: int
    feature_names: Path | None
    seed: int
    pins: Sequence[str | Path]
    counterfactuals: CounterfactualsOption
    attacks: bool
    device: str | torch.device | None
    on_error: Literal["warn", "raise"]


@dataclass(frozen=True)
class AnalysisRunner:
    """Runs the analyses of a callback, whose options it holds under their names.

    Attributes:
        methods: The methods that are on, each with its fit.
        encoders: The cached encoders by option; an encoder that could not be loaded is absent.
        captions: Gives the candidate captions of classes.
        reader: Reads examples for pictures and for the training reference.
        reference: Gives the embeddings that directions are standardised with.
        feature_names: File with names of features; None: the one in the folder of the run.
        attacks: Whether features are attacked for their pictures.
        device: Device of matrix products of the analysis.
        say_once: Emits each distinct message at most once.
        pins: Pinned slices that every analysis checks.
        counterfactuals: Whether regions of features are pasted; a generator: captions are rendered too.
        raises: Whether errors stop the run.
        guard: ``(trainer, where, skipped)`` -> a block in which an error is a warning, or raised, as the user wishes.
    """

    methods: Sequence[tuple[Method, FittableMethod]]
    encoders: Mapping[str, CachedEncoder]
    captions: CaptionSources
    reader: BatchReader
    reference: ReferenceEmbeddings
    permutations: int
    n_directions: int
    doubted: Doubted
    worst_k: int
    feature_names: Path | None
    seed: int
    pins: Sequence[Pin]
    counterfactuals: bool | ImageGenerator
    attacks: bool
    device: str | torch.device
    say_once: Callable[..., None]
    raises: bool
    guard: Callable[[Trainer, str, str], AbstractContextManager[None]]
    _late_doubts: LateDoubts
    _writers: dict[Path, list[Writer]] = field(default_factory=dict)
    _undrawn: dict[int, AnalysisSnapshot] = field(default_factory=dict)
    _former: dict[int, Grades] = field(default_factory=dict)  # of loaders whose ids are no indices of their datasets

    @classmethod
    def of(
        cls,
        options: RunnerOptions,
        encoders: Mapping[str, CachedEncoder],
        reader: BatchReader,
        say_once: Callable[..., None],
        guard: Callable[..., AbstractContextManager[None]],
    ) -> AnalysisRunner:
        """Return the runner for the options of a callback.

        Args:
            options: The callback.
            encoders: The cached encoders by option.
            reader: Reads examples.
            say_once: Emits each distinct message at most once.
            guard: Makes the block in which an error is a warning, as the callback guards its own.
        """
        directions = encoders.get("encoder")
        device = "cpu" if directions is None else getattr(directions.encoder, "device", "cpu")
        vocabulary, captioner = load_captions(options.captions, device=device)
        return cls(
            methods=[(method, method.fitter(options)) for method in methods_for(options)],
            encoders=encoders,
            captions=CaptionSources(directions, vocabulary, captioner, options.seed, say_once),
            reader=reader,
            reference=ReferenceEmbeddings(options.reference, reader, options.seed, say_once),
            permutations=options.permutations,
            n_directions=options.n_directions,
            doubted=options.doubted,
            worst_k=options.worst_k,
            feature_names=options.feature_names,
            seed=options.seed,
            pins=open_pins(options.pins, encoders),
            counterfactuals=load_counterfactuals(options.counterfactuals),
            attacks=options.attacks,
            device="cpu" if options.device is None else options.device,
            say_once=say_once,
            raises=options.on_error == "raise",
            guard=guard,
            _late_doubts=LateDoubts(say_once),
        )

    @property
    def directions(self) -> CachedEncoder | None:
        """The encoder of the failure directions, or None."""
        return self.encoders.get("encoder")

    @property
    def trees(self) -> CachedEncoder | None:
        """The encoder of the failure trees, or None."""
        return self.encoders.get("robust_encoder")

    @property
    def undrawn(self) -> list[int]:
        """Indices of the loaders whose last analysis has no pictures yet."""
        return sorted(self._undrawn)

    @property
    def cached_encoders(self) -> list[CachedEncoder]:
        """All encoders."""
        return list(self.encoders.values())

    def analyse(
        self,
        trainer: Trainer,
        loader: Any,
        index: int,
        evaluation: EvaluationPass,
        ranks: Communicator,
        *,
        interventions: bool,
        decision: bool = False,
        spent: bool = False,
        deadline: Deadline | None = None,
        logged: Mapping[str, float] | None = None,
        model: ModelFeatures | None = None,
    ) -> LoaderAnalysis:
        """Analyse one loader, each rank the classes that it owns; all return the same result. Collective.

        Args:
            trainer: Gives epoch and step.
            loader: The evaluation loader.
            index: Its number.
            evaluation: The evaluation pass over the loader.
            ranks: The processes.
            interventions: Whether the examples are split: only the discovery part is then fitted.
            decision: Whether there is a decision part.
            spent: Whether there is a part that the last layer may be fitted to.
            deadline: When the analysis should be over.
            logged: Metrics that the module itself logged in this evaluation.
            model: The penultimate features of the live model.
        """
        grader = evaluation.grader
        start = perf_counter()
        grades = join_sources_of_equal_digests(grader.grades())
        said = grading_notes(grader, grades, logged or {})
        unstable = None if grader.indexed else self._unstable_ids(grades, index)
        doubts = (*said.doubts, *(doubt for doubt in (grader.repeats, unstable) if doubt))
        for doubt in doubts:
            self.say_once(doubt)
        split = part_of(grades, seed=self.seed, decision=decision, spent=spent) if interventions else None
        sampled = evaluation.embeddings.sampled_rows(grades)
        analysed, analysed_sampled = grades, sampled
        if split is not None:
            found = split == Part.DISCOVERY
            analysed, analysed_sampled = take_grades(grades, found), sampled[found.numpy()]
        examples = partial(ExampleReader.of_loader, trainer, loader, index, self.reader)
        captions = self.captions.of_analysis(analysed, analysed_sampled, grader, index, examples, deadline)
        model = model or ModelFeatures()
        methods = model.methods(self.methods, index)
        result = self._fit(
            trainer, analysed, analysed_sampled, evaluation, captions, ranks, deadline, methods=methods, model=model
        )
        result = with_model(result, trainer, model.head)

        # the held-out parts are judged by the first process, which broadcasts them with the result
        discovery: Discovery | None = None
        if split is not None:
            whole = evaluation.embeddings.embeddings_on_first(self.directions, grades.ids[sampled])
            judged = ranks.run_all(
                lambda: judge_parts(grades, split, sampled, whole, result) if ranks.is_first else None
            )
            del whole
            if judged is not None:
                parts, discovery = judged
                result = replace(result, parts=parts)

        result = with_pin_checks(result, self.pins, grades, evaluation, self.encoders, ranks)

        left_out = (*grader.notes(), *evaluation.embeddings.notes())
        for note in (*left_out, *failed_fits(result.report.classes, result.report.groups)):
            self.say_once(f"FailureModes: {note}")
        result = result.with_report(
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
            stage=None if trainer.state.fn is None else str(trainer.state.fn.value),
            dataloader=index,
            encoder=None if self.directions is None else self.directions.encoder.name,
            robust_encoder=None if self.trees is None else self.trees.encoder.name,
            encoder_fingerprint=None if self.directions is None else self.directions.encoder.fingerprint,
            robust_encoder_fingerprint=None if self.trees is None else self.trees.encoder.fingerprint,
            notes=(*said.notes, *doubts, *left_out, *result.report.notes),
            timings=result.report.timings | {"total": round(perf_counter() - start, 4)},
        )
        # the result of the first process: decisions must not differ where machines round differently
        result, in_time = ranks.broadcast((result, deadline is None or not deadline.passed))
        return LoaderAnalysis(
            result, loader, index, grades, split, analysed, analysed_sampled, evaluation, discovery, in_time
        )

    def publish(
        self, trainer: Trainer, analysis: LoaderAnalysis, ranks: Communicator, *, folder: Path, run_id: str | None
    ) -> AnalysisResult:
        """Enter an analysis into the diary and write it with every writer; returns it with its modes. Collective.

        Args:
            trainer: Gives the loggers.
            analysis: The analysis.
            ranks: The processes.
            folder: Folder of the run.
            run_id: Id of the run for the report; that of the first process counts.
        """
        result, split = analysis.result.with_report(run_id=ranks.broadcast(run_id)), analysis.split
        if split is not None and result.table is not None:
            result = replace(result, table=whole_table(analysis.grades, split, result))
        modes = ranks.run_all(lambda: keep_diary(result, folder, warn=self.say_once) if ranks.is_first else ())
        result = self._named(with_modes(result, ranks.broadcast(modes)), folder)
        ranks.run_all(lambda: self._write(trainer, _with_names(result, analysis), folder) if ranks.is_first else None)
        accuracies = comparable_accuracies(analysis.evaluation.grader, analysis.grades)
        self._late_doubts.expect(analysis.index, result, accuracies, self._writers.get(folder, ()))
        examples = partial(ExampleReader.of_loader, trainer, analysis.loader, analysis.index, self.reader)
        self._undrawn[analysis.index] = AnalysisSnapshot(
            result, trainer, examples, analysis.analysed, analysis.sampled, analysis.evaluation, folder
        )
        return result

    def revise(self, result: AnalysisResult, folder: Path, *, write: bool) -> None:
        """Replace the last analysis of the first loader, before its pictures are drawn, if it has changed."""
        snapshot = self._undrawn.get(0)
        if snapshot is None or snapshot.result is not result:
            if snapshot is not None:
                self._undrawn[0] = replace(snapshot, result=result)
            if write:
                self.write_verdict(result, folder)

    def draw(self, index: int, ranks: Communicator, *, seconds: float | None = None) -> AnalysisResult | None:
        """Draw the last analysis of a loader, unless it has pictures; return it with its features. Collective.

        An error is reported, and the analysis stays without pictures.

        Args:
            index: Index of the loader.
            ranks: The processes.
            seconds: Time for optional pictures, of which feature attacks are left out first. None: no limit.
        """
        snapshot = self._undrawn.get(index)
        if snapshot is None:
            return None
        try:
            with ranks.synchronized():
                result = self._drawn(snapshot, ranks, seconds)
            self._late_doubts.update(index, result)
        except Exception as error:
            self.say_once(f"FailureModes could not draw pictures: {type(error).__name__}: {error}")
            result = snapshot.result
        del self._undrawn[index]  # an interruption leaves it to draw_interrupted
        return result

    def draw_all(self, ranks: Communicator, *, seconds: float | None = None) -> AnalysisResult | None:
        """Draw all analyses without pictures; return that of the first loader, None if it is not among them."""
        return {index: self.draw(index, ranks, seconds=seconds) for index in self.undrawn}.get(0)

    def add_late_doubts(
        self, trainer: Trainer, logged: Callable[[], Mapping[str, float]]
    ) -> Mapping[int, AnalysisResult]:
        """Add doubts that come from metrics which the module logged in its own epoch end; return the doubted analyses.

        Args:
            trainer: The Trainer.
            logged: Returns the metrics that the module logged in this validation, by key.
        """
        doubted: dict[int, AnalysisResult] = {}
        with self.guard(trainer, "the metrics of the module", "their comparison"):
            doubted = self._late_doubts.add(logged)
        for index in doubted.keys() & self._undrawn.keys():
            self._undrawn[index] = replace(self._undrawn[index], result=doubted[index])
        return doubted

    def draw_interrupted(self, *, alone: bool) -> None:
        """Write the pages of the last analyses after an interruption; on the first process, not collective.

        Each page is first written without pictures, in case there is no time for more.

        Args:
            alone: Whether there is only one process. Otherwise there are no pictures, whose data other processes hold.
        """
        for snapshot in self._undrawn.values():
            result = snapshot.result
            empty = Gallery(epoch=result.report.epoch, global_step=result.report.global_step)
            files = [writer for writer in self._writers.get(snapshot.folder, ()) if isinstance(writer, FileWriter)]
            self._report_failed(each_writer(files, partial(_show, result, empty)))
            if alone:
                with suppress(Exception), isolated_rng():
                    self._drawn(snapshot, Communicator(), SECONDS_AFTER_INTERRUPTION, hurried=True)
        self._undrawn.clear()

    def _drawn(
        self, snapshot: AnalysisSnapshot, ranks: Communicator, seconds: float | None, *, hurried: bool = False
    ) -> AnalysisResult:
        start = perf_counter()
        if ranks.is_first:
            prepare()  # bundles the scripts of the page while pictures are drawn
        deadline = None if seconds is None else Deadline.after(seconds)
        builder = replace(self._gallery_builder, hurried=True) if hurried else self._gallery_builder
        result, gallery = builder.draw(snapshot, ranks, deadline)
        if gallery is not None:
            images = self._images_of(snapshot)
            added = [picture for method, _ in self.methods for picture in self._pictures_of(method, result, images)]
            gallery = replace(gallery, pictures=(*gallery.pictures, *added))
        timings = result.report.timings | {"pictures": round(perf_counter() - start, 4)}
        result = result.with_report(timings=ranks.broadcast(timings))
        if gallery is not None:
            self._report_failed(each_writer(self._writers[snapshot.folder], partial(_show, result, gallery)))
        return result

    @cached_property
    def _gallery_builder(self) -> GalleryBuilder:
        """The builder of all galleries, with the options of this runner."""
        return GalleryBuilder(
            directions=self.directions,
            trees=self.trees,
            captions=self.captions,
            null_permutations=NULL_PERMUTATIONS if self.permutations else 0,
            worst_k=self.worst_k,
            feature_names=self.feature_names,
            seed=self.seed,
            say_once=self.say_once,
            counterfactuals=self.counterfactuals,
            attacks=self.attacks,
            device=self.device,
        )

    def _images_of(self, snapshot: AnalysisSnapshot) -> ImageReader:
        """Return what reads the images of an analysis by id; it reads none if ids are no indices of the dataset."""

        def read(ids: Sequence[int]) -> dict[int, Tensor]:
            if not snapshot.evaluation.grader.indexed or not ids:
                return {}
            return dict(zip(ids, snapshot.reader().images(ids), strict=True))

        return read

    def _pictures_of(self, method: Method, result: AnalysisResult, images: ImageReader) -> Sequence[Picture]:
        """Return the pictures that a method adds; a method that fails adds none."""
        try:
            return method.pictures_of_examples(result, images, worst_k=self.worst_k)
        except Exception as error:
            self.say_once(f"FailureModes could not draw {method.name}: {type(error).__name__}: {error}")
            return ()

    def write_verdict(self, result: AnalysisResult, folder: Path) -> None:
        """Write the verdict in the last report of the first loader with every writer; in the first process only."""
        step = result.report.global_step or 0
        writers = self._writers.get(folder, ())
        self._report_failed(each_writer(writers, lambda writer: writer.write_verdict(result, step)))

    def _unstable_ids(self, grades: Grades, index: int) -> str | None:
        """Return a warning if ids name other examples than in the analysis before; None if not, or at the first."""
        former, self._former[index] = self._former.get(index), grades
        return None if former is None else unstable_ids(former, grades)

    def _fit(
        self,
        trainer: Trainer,
        grades: Grades,
        sampled: NDArray[np.bool_],
        evaluation: EvaluationPass,
        captions: Captions | None,
        ranks: Communicator,
        deadline: Deadline | None,
        *,
        methods: Sequence[tuple[Method, FittableMethod]],
        model: ModelFeatures,
    ) -> AnalysisResult:
        """Fit with the embeddings of the classes that this rank owns."""
        failures: list[str] = []
        attempt = partial(self._attempt, trainer, ranks, failures)
        values = values_of_methods(methods, self.encoders, evaluation, grades, sampled, ranks, attempt)
        failures += model.missing(methods, values)
        begun = perf_counter()
        reference, reference_labels, source = None, None, ""
        with attempt("directions"):
            reference, reference_labels, source = self.reference.of_analysis(trainer, grades, self.directions, ranks)
        if not source:
            values.pop("directions", None)
        if deadline is not None:  # the training images, embedded once, do not count
            deadline = Deadline(deadline.at + perf_counter() - begun)
        result = analyse(
            grades,
            values.pop("directions", None),
            features=values.pop("trees", None),
            methods=[(fit, values[method.name]) for method, fit in methods if method.name in values],
            penultimate_training=model.training,
            reference=reference,
            training_labels=reference_labels,
            captions=captions,
            attribute_captions=None if captions is None else self.captions.attributes(grades.class_names),
            metadata=evaluation.grader.metadata(grades),
            groupings=evaluation.grader.groupings(grades),
            sampled=sampled,
            time_budget=None if deadline is None else deadline.left,
            permutations=self.permutations,
            n_directions=self.n_directions,
            doubted=self.doubted,
            seed=self.seed,
            device=self.device,
            workers=ranks,
            attempt=attempt,
            raise_class_errors=self.raises,
        )
        if self.directions is not None:
            self.directions.store.flush()  # new captions
        return result.with_report(reference=source, notes=(*result.report.notes, *failures))

    @contextmanager
    def _attempt(self, trainer: Trainer, ranks: Communicator, failures: list[str], name: str) -> Iterator[None]:
        """Let a method that fails, on any rank, leave the others; a note says why it is missing."""
        title = next((method.title for method, _ in self.methods if method.name == name and method.title), name)
        with self.guard(trainer, "the analysis", title):
            try:
                with ranks.synchronized():
                    yield
            except Exception as error:
                failures.append(f"No {title}: {type(error).__name__}: {error}")
                raise

    def snapshot(self, index: int) -> AnalysisSnapshot | None:
        """Return the last analysis of a loader, if it has no pictures yet."""
        return self._undrawn.get(index)

    def add_last(
        self,
        trainer: Trainer,
        snapshot: AnalysisSnapshot,
        ranks: Communicator,
        model: ModelFeatures,
        deadline: Deadline | None,
    ) -> AnalysisResult:
        """Fit the methods of the last analysis after it, if it was not known to be the last. Collective.

        Args:
            trainer: The Trainer.
            snapshot: The analysis.
            ranks: The processes.
            model: The penultimate features of the live model, whose weights are still those of the analysis.
            deadline: When the fit should be over.
        """
        failures: list[str] = []
        methods = model.last_methods(self.methods)
        attempt = partial(self._attempt, trainer, ranks, failures)
        grades, sampled = snapshot.grades, snapshot.sampled
        values = values_of_methods(methods, self.encoders, snapshot.evaluation, grades, sampled, ranks, attempt)
        added = analyse(
            grades,
            methods=[(fit, values[method.name]) for method, fit in methods if method.name in values],
            penultimate_training=model.training,
            sampled=sampled,
            time_budget=None if deadline is None else deadline.left,
            seed=self.seed,
            device=self.device,
            workers=ranks,
            attempt=attempt,
        )
        notes = (*added.report.notes, *model.missing(methods, values), *failures)
        result = with_late(snapshot.result, with_model(added.with_report(notes=notes), trainer, model.head))
        return self._named(ranks.broadcast(result), snapshot.folder)

    def _named(self, result: AnalysisResult, folder: Path) -> AnalysisResult:
        """Return the result with the names of features of the model; a file that cannot be read is reported."""
        try:
            return with_names(result, names_file(self.feature_names, folder))
        except ConfigurationError as error:
            self.say_once(f"FailureModes cannot read the names of features: {error}")
            return result

    def _write(self, trainer: Trainer, result: AnalysisResult, folder: Path) -> None:
        """Write with every writer; one that fails is reported and the others go ahead."""
        if folder not in self._writers:
            self._writers[folder] = writers_for(trainer.loggers, folder, feature_names=self.feature_names)
        step = result.report.global_step or 0
        self._report_failed(each_writer(self._writers[folder], lambda writer: writer.write(result, step)))

    def _report_failed(self, failed: list[tuple[Writer, Exception]]) -> None:
        for writer, error in failed:
            self.say_once(f"FailureModes could not write to {type(writer).__name__}: {type(error).__name__}: {error}")


def _show(result: AnalysisResult, gallery: Gallery, writer: Writer) -> None:
    writer.show(result, gallery, result.report.global_step or 0)


def _with_names(result: AnalysisResult, analysis: LoaderAnalysis) -> AnalysisResult:
    """Return the result with the file names of its examples, which only its files need."""
    table = None if result.table is None else analysis.evaluation.grader.with_names(result.table)
    return replace(result, table=table)
