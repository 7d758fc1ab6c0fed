"""What happens at the end of an evaluation: all processes analyse, the first one draws pictures and writes files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.analysis.analyse import analyse
from lightning_failures.captions.candidates import ClassCaptions, caption_source
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.core.budget import Deadline
from lightning_failures.core.rng import isolated_rng, seed_all
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.partition import owned_rows
from lightning_failures.data.report import FailureReport
from lightning_failures.encoders import gives_texts
from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.interventions import Discovery
from lightning_failures.interventions.validation_split import (
    HeldOutSplit,
    Part,
    part_of,
    take_grades,
)
from lightning_failures.report.diary_storage import keep_diary
from lightning_failures.report.html.render import prepare
from lightning_failures.trainer.batch_reader import BatchReader, ExampleReader, TrainingSample, training_sample
from lightning_failures.trainer.evaluation_pass import EvaluationPass
from lightning_failures.trainer.pictures.painter import AnalysisSnapshot, GalleryBuilder
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.writers import Writer, each_writer, writers_for

NULL_PERMUTATIONS = 20
"""Of the CV scores that chance gives, for an analysis with pictures."""

REFERENCE_BLOCK = 64
"""Training examples that are read at once, by one rank."""

Act = Callable[[FailureReport, Discovery | None], FailureReport]
"""Interventions: from the report of the discovery part, whose examples the first process has, to that of all parts."""


@dataclass(frozen=True)
class AnalysisRunner:
    """Everything that an analysis needs beside the grades; the options are those of ``FailureModes``.

    Attributes:
        directions: The lens of the failure directions, or None.
        trees: The lens of the failure trees, or None.
        vocabulary: Words for captions, or None.
        reader: Reads examples for pictures and for the training reference.
        reference: "validation" or "train".
        feature_names: File with names of features; None: the one in the folder of the run.
        say_once: Tells a person something that is not worth telling twice.
    """

    directions: CachedEncoder | None
    trees: CachedEncoder | None
    vocabulary: CaptionVocabulary | None
    reader: BatchReader
    reference: str
    permutations: int
    n_directions: int
    worst_k: int
    feature_names: Path | None
    seed: int
    say_once: Callable[..., None]
    _captions: dict[str, ClassCaptions] = field(default_factory=dict)
    _reference_keys: list[Tensor] = field(default_factory=list)  # (n, 2) of this rank's share, once it is embedded
    _sinks: dict[Path, list[Writer]] = field(default_factory=dict)
    _undrawn: dict[int, AnalysisSnapshot] = field(default_factory=dict)

    @property
    def undrawn(self) -> list[int]:
        """The loaders whose last analysis has no pictures yet."""
        return sorted(self._undrawn)

    @property
    def cached_encoders(self) -> list[CachedEncoder]:
        """Those that there are."""
        return [cached for cached in (self.directions, self.trees) if cached is not None]

    def explain(
        self,
        trainer: Trainer,
        loader: Any,
        index: int,
        evaluation: EvaluationPass,
        ranks: Communicator,
        *,
        act: Act | None,
        decision: bool = False,
        deadline: Deadline | None = None,
        folder: Path,
        pictures: bool,
        picture_seconds: float | None = None,
    ) -> FailureReport:
        """Explain one loader: each rank the classes that it owns. All return the same report. Collective.

        Args:
            trainer: Tells epoch, step and loggers.
            loader: Pictures are read from its dataset.
            index: Its number.
            evaluation: What was seen of it.
            ranks: The processes.
            act: Interventions, which turn the report of the discovery part into that of all; None: no parts.
            decision: Whether there is a decision part.
            deadline: When the analysis should be over.
            folder: Of files.
            pictures: Whether to draw at once.
            picture_seconds: What that may take.
        """
        grader = evaluation.grader
        if grader.doubt:
            self.say_once(grader.doubt)
        start = time.perf_counter()
        grades = grader.grades()
        parts = None if act is None else part_of(grades, seed=self.seed, decision=decision)
        found = grades if parts is None else take_grades(grades, parts == Part.DISCOVERY)
        sampled = evaluation.embeddings.sampled_rows(grades)
        seen = sampled if parts is None else sampled[(parts == Part.DISCOVERY).numpy()]
        report = self._analyse(trainer, found, seen, evaluation, ranks, deadline)
        discovery: Discovery | None = None
        if parts is not None:  # what was not fitted to is judged, and acted on, by the first process
            whole = evaluation.embeddings.embeddings_on_first(self.directions, grades.ids[sampled])
            made = ranks.run(lambda: _parts(grades, parts, sampled, whole, report) if ranks.is_first else None)
            del whole
            if made is not None:
                told, decides, discovery = made
                report = replace(report, report_part=told, decision_part=decides)
        report = replace(
            report,
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
            stage=None if trainer.state.fn is None else str(trainer.state.fn.value),
            dataloader=index,
            encoder=None if self.directions is None else self.directions.encoder.name,
            robust_encoder=None if self.trees is None else self.trees.encoder.name,
            encoder_fingerprint=None if self.directions is None else self.directions.encoder.fingerprint,
            robust_encoder_fingerprint=None if self.trees is None else self.trees.encoder.fingerprint,
            timings=report.timings | {"total": round(time.perf_counter() - start, 4)},
        )
        # that of the first: where machines differ in the last bit, decisions must not
        report, in_time = ranks.broadcast((report, deadline is None or not deadline.passed))
        if act is not None:
            report = act(report, discovery)
        if parts is not None and report.table is not None:
            report = replace(report, table=_whole_table(grades, parts, report))
        modes = ranks.run(lambda: keep_diary(report, folder, tell=self.say_once) if ranks.is_first else ())
        report = replace(report, modes=ranks.broadcast(modes))
        ranks.run(lambda: self._write(trainer, report, folder) if ranks.is_first else None)
        self._undrawn[index] = AnalysisSnapshot(report, loader, found, seen, evaluation, folder)
        if pictures and not in_time:
            self.say_once("FailureModes draws no pictures: the time budget is spent. Give more, or draw in `validate`.")
        return (self.draw(index, ranks, seconds=picture_seconds) or report) if pictures and in_time else report

    def draw(self, index: int, ranks: Communicator, *, seconds: float | None = None) -> FailureReport | None:
        """Draw the last analysis of a loader if it has no pictures yet; returns its report with features. Collective.

        What goes wrong is told: the analysis stands without pictures.

        Args:
            index: Number of the loader.
            ranks: The processes.
            seconds: What takes longer is left out: feature attacks first. None: everything.
        """
        scene = self._undrawn.pop(index, None)
        if scene is None:
            return None
        try:
            with ranks.together():
                return self._drawn(scene, ranks, seconds)
        except Exception as error:
            self.say_once(f"FailureModes could not draw pictures: {type(error).__name__}: {error}")
            return scene.report

    def _drawn(self, scene: AnalysisSnapshot, ranks: Communicator, seconds: float | None) -> FailureReport:
        start = time.perf_counter()
        if ranks.is_first:
            prepare()  # of the page, beside the drawing
        painter = GalleryBuilder(
            directions=self.directions,
            trees=self.trees,
            reader=self.reader,
            captions=partial(self._caption_source, has_names=scene.evaluation.grader.has_names),
            nulls=NULL_PERMUTATIONS if self.permutations else 0,
            worst_k=self.worst_k,
            feature_names=self.feature_names,
            seed=self.seed,
            say_once=self.say_once,
        )
        report, gallery = painter.draw(scene, ranks, None if seconds is None else Deadline.after(seconds))
        timings = report.timings | {"pictures": round(time.perf_counter() - start, 4)}
        report = replace(report, timings=ranks.broadcast(timings))
        if gallery is not None:
            step = report.global_step or 0
            self._tell_failed(each_writer(self._sinks[scene.folder], lambda sink: sink.show(report, gallery, step)))
        return report

    def conclude(self, report: FailureReport, folder: Path) -> None:
        """Tell every sink of the verdict that a report of the first loader bears; in the first process."""
        step = report.global_step or 0
        self._tell_failed(each_writer(self._sinks.get(folder, ()), lambda sink: sink.write_verdict(report, step)))

    def _analyse(
        self,
        trainer: Trainer,
        grades: Grades,
        sampled: NDArray[np.bool_],
        evaluation: EvaluationPass,
        ranks: Communicator,
        deadline: Deadline | None,
    ) -> FailureReport:
        """Fit, with the embeddings of the classes that this rank owns."""
        share = partial(owned_rows, grades, processes=ranks.size, sampled=sampled)
        embeddings, features = (
            None
            if cached is None
            else evaluation.embeddings.embeddings_of(
                cached,
                [torch.unique(grades.ids[share(rank, predicted=either)]) for rank in range(ranks.size)],
            )
            for cached, either in ((self.directions, False), (self.trees, True))
        )
        begun = time.perf_counter()
        reference, source = self._reference_embeddings(trainer, len(torch.unique(grades.ids)), ranks)
        if deadline is not None:  # what is embedded of the training set, once, is not on the bill
            deadline = Deadline(deadline.at + time.perf_counter() - begun)
        report = analyse(
            grades,
            embeddings,
            features=features,
            reference=reference,
            captions=self._caption_source(grades.class_names, has_names=evaluation.grader.has_names),
            metadata=evaluation.grader.metadata(grades),
            sampled=sampled,
            time_budget=None if deadline is None else deadline.left,
            permutations=self.permutations,
            n_directions=self.n_directions,
            seed=self.seed,
            sharing=ranks,
        )
        if self.directions is not None:
            self.directions.store.flush()  # the captions that were new
        return replace(report, reference=source)

    def _write(self, trainer: Trainer, report: FailureReport, folder: Path) -> None:
        """Write to every sink; one that fails is told of and left out."""
        if folder not in self._sinks:
            self._sinks[folder] = writers_for(trainer.loggers, folder, feature_names=self.feature_names)
        self._tell_failed(each_writer(self._sinks[folder], lambda sink: sink.write(report, report.global_step or 0)))

    def _tell_failed(self, failed: list[tuple[Writer, Exception]]) -> None:
        for sink, error in failed:
            self.say_once(f"FailureModes could not write to {type(sink).__name__}: {type(error).__name__}: {error}")

    def _caption_source(
        self, class_names: tuple[str, ...], *, has_names: bool
    ) -> Callable[[int], ClassCaptions | None] | None:
        """None, said once, where there can be no captions."""
        if self.directions is None or self.vocabulary is None:
            return None
        encoder = self.directions.encoder
        if not gives_texts(encoder):
            self.say_once(f"The encoder {encoder.name} knows no texts: captions are off.", rank_zero_info)
            return None
        if not has_names:
            self.say_once("Classes have no names (class_names=None, no dataset.classes): captions are off.")
            return None
        return caption_source(self.directions, self.vocabulary, class_names, self._captions)

    def _reference_embeddings(self, trainer: Trainer, examples: int, ranks: Communicator) -> tuple[Tensor | None, str]:
        """This rank's share; None stands for the examples that are analysed themselves. Collective."""
        if self.reference == "validation" or self.directions is None:
            return None, f"validation ({examples} examples)"
        cached = self.directions
        sample = training_sample(trainer, seed=self.seed)
        if not self._reference_keys or bool(cached.store.missing(self._reference_keys[0]).any()):
            self._reference_keys[:] = [self._embed_reference(cached, sample, ranks)]
        (keys,) = self._reference_keys
        rows = cached.look_up(keys) if len(keys) else torch.empty(0, cached.encoder.dim)
        return rows, f"train ({len(sample.ids)} of {sample.total} examples)"

    def _embed_reference(self, cached: CachedEncoder, sample: TrainingSample, ranks: Communicator) -> Tensor:
        """The keys (n, 2) of this rank's share of a sample.

        Random transforms give the same images in every analysis, whatever the number of processes.
        """
        examples_of = ExampleReader(sample.dataset, sample.collate, self.reader)
        keys = [torch.empty(0, 2, dtype=torch.int64)]
        with isolated_rng():
            for number in range(ranks.number, -(-len(sample.ids) // REFERENCE_BLOCK), ranks.size):
                seed_all(self.seed + number)
                images = examples_of.images(sample.ids[number * REFERENCE_BLOCK :][:REFERENCE_BLOCK])
                keys.append(content_keys(images))
                cached.embed(images, keys[-1])
        cached.store.flush()
        return torch.cat(keys)


def _whole_table(grades: Grades, parts: Tensor, report: FailureReport) -> ExampleTable:
    """Of all parts: what was not fitted to has its decision values from the directions of the discovery part."""
    assert report.table is not None
    values = torch.full((len(grades),), float("nan"))
    values[parts == Part.DISCOVERY] = report.table.values
    for part, judged in ((Part.REPORT, report.report_part), (Part.DECISION, report.decision_part)):
        if judged is not None:
            values[parts == part] = judged.values
    return ExampleTable.of(grades, values, report.trees)


def _parts(
    grades: Grades, parts: Tensor, sampled: NDArray[np.bool_], whole: Tensor | None, report: FailureReport
) -> tuple[HeldOutSplit, HeldOutSplit, Discovery | None]:
    """The report and the decision part, and the examples that the directions were fitted to, if all have an embedding.

    Args:
        grades: N rows.
        parts: (N,) int64.
        sampled: (N,) bool, the rows that were looked at.
        whole: (U, D), one row for each distinct id of those, or None.
        report: Of the discovery part.
    """
    looked_at = torch.from_numpy(sampled)
    ids = torch.unique(grades.ids[looked_at])

    def rows(some: Grades) -> Tensor | None:
        return None if whole is None else whole[torch.isin(ids, some.ids)]

    def judged(part: int) -> HeldOutSplit:
        mine = parts == part
        seen = take_grades(grades, mine & looked_at)
        values = torch.full((int(mine.sum()),), float("nan"))
        values[looked_at[mine]] = HeldOutSplit.of(seen, rows(seen), report.directions).values
        return HeldOutSplit(take_grades(grades, mine), values)

    kept = take_grades(grades, (parts == Part.DISCOVERY) & looked_at)
    found = rows(kept)
    discovery = None if found is None else Discovery(found, kept.labels, kept.correct, kept.ids, kept.groups)
    return judged(Part.REPORT), judged(Part.DECISION), discovery
