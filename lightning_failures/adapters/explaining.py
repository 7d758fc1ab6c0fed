"""What the first process does at the end of an evaluation: the analysis, its pictures, its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_failures.adapters.collector import Collector
from lightning_failures.adapters.distributed import Ranks
from lightning_failures.adapters.lenses import Lens
from lightning_failures.adapters.loaders import dataset_of
from lightning_failures.adapters.pictures import draw_pictures
from lightning_failures.adapters.reading import BatchReader, ExampleReader, training_sample
from lightning_failures.analysis import analyse
from lightning_failures.candidates import ClassCaptions, caption_source
from lightning_failures.encoders import gives_maps, gives_texts
from lightning_failures.enrichment import Attribute
from lightning_failures.grammar import CaptionVocabulary
from lightning_failures.interventions import Discovery
from lightning_failures.interventions.parts import DECISION, DISCOVERY, REPORT, ReportPart, part_of, take_grades
from lightning_failures.records import FailureReport, Grades
from lightning_failures.sinks import Sink, sinks_for, write_all
from lightning_failures.visuals import Picture

__all__ = ["Explainer"]

Embedded = tuple[Tensor, Tensor]
"""Ids (U,) int64, ascending, and their embeddings (U, D) float32."""


Act = Callable[[FailureReport, Discovery | None], FailureReport]
"""Interventions: from the report of the discovery part, whose examples the first process has, to that of all parts."""


@dataclass(frozen=True)
class Explainer:
    """Everything that an analysis needs beside the grades; the options are those of ``FailureModes``.

    Attributes:
        directions: The lens of the failure directions, or None.
        trees: The lens of the failure trees, or None.
        vocabulary: Words for captions, or None.
        reader: Reads examples for pictures and for the training reference.
        reference: "validation" or "train".
        say_once: Tells a person something that is not worth telling twice.
    """

    directions: Lens | None
    trees: Lens | None
    vocabulary: CaptionVocabulary | None
    reader: BatchReader
    reference: str
    permutations: int
    n_directions: int
    worst_k: int
    seed: int
    say_once: Callable[..., None]
    _captions: dict[str, ClassCaptions] = field(default_factory=dict)
    _sinks: dict[Path, list[Sink]] = field(default_factory=dict)

    @property
    def lenses(self) -> list[Lens]:
        """Those that there are."""
        return [lens for lens in (self.directions, self.trees) if lens is not None]

    def explain(
        self,
        trainer: Trainer,
        loader: Any,
        index: int,
        collector: Collector,
        ranks: Ranks,
        *,
        act: Act | None,
        decision: bool = False,
        folder: Path,
        pictures: bool,
    ) -> FailureReport:
        """Explain one loader on the first rank, and hand the outcome to all ranks, be it an error. Collective.

        Args:
            trainer: Tells epoch, step and loggers.
            loader: Pictures are read from its dataset.
            index: Its number.
            collector: What was seen of it.
            ranks: The processes.
            act: Interventions, which turn the report of the discovery part into that of all; None: no parts.
            decision: Whether there is a decision part.
            folder: Of files.
            pictures: Whether to draw.
        """
        if collector.doubt:
            self.say_once(collector.doubt)
        if pictures and not collector.indexed:
            self.say_once("The ids of read_batch are not the indices of the dataset: no pictures.")
        pictures = pictures and collector.indexed
        grades = collector.grades()
        embedded, featured = (
            None if lens is None else collector.embeddings(lens) for lens in (self.directions, self.trees)
        )
        parts = None if act is None else part_of(grades, seed=self.seed, decision=decision)
        report: FailureReport | None = None
        error: Exception | None = None
        if ranks.is_first:
            try:
                report = self._analyse(
                    trainer,
                    index,
                    grades,
                    embedded,
                    featured,
                    metadata=collector.metadata(grades),
                    has_names=collector.has_names,
                    parts=parts,
                )
            except Exception as raised:
                error = raised
        ranks.agree(error)
        report = ranks.broadcast(report)
        assert report is not None
        if act is not None:
            report = act(report, _discovery(grades, embedded, parts) if ranks.is_first else None)
        if ranks.is_first:
            try:
                kept = grades if parts is None else take_grades(grades, parts == DISCOVERY)
                self._publish(trainer, report, self._draw(loader, report, kept, featured) if pictures else [], folder)
            except Exception as raised:
                error = raised
        ranks.agree(error)
        return report

    def _analyse(
        self,
        trainer: Trainer,
        index: int,
        grades: Grades,
        embedded: Embedded | None,
        featured: Embedded | None,
        *,
        metadata: Mapping[str, Attribute],
        has_names: bool,
        parts: Tensor | None,
    ) -> FailureReport:
        start = time.perf_counter()
        whole = grades, _matching(embedded, grades.ids)
        if parts is not None:
            rows = parts == DISCOVERY
            metadata = {name: attribute[rows.numpy()] for name, attribute in metadata.items()}
            grades = take_grades(grades, rows)
        reference, source = self._reference_embeddings(trainer, len(torch.unique(grades.ids)))
        report = analyse(
            grades,
            _some(_matching(embedded, whole[0].ids), whole[0].ids, grades.ids),
            features=_some(_matching(featured, whole[0].ids), whole[0].ids, grades.ids),
            reference=reference,
            captions=self._caption_source(grades.class_names, has_names=has_names),
            metadata=metadata,
            permutations=self.permutations,
            n_directions=self.n_directions,
            seed=self.seed,
        )
        if self.directions is not None:
            self.directions.store.flush()  # the captions that were new
        report = replace(
            report,
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
            stage=None if trainer.state.fn is None else str(trainer.state.fn.value),
            dataloader=index,
            reference=source,
            encoder=None if self.directions is None else self.directions.encoder.name,
            robust_encoder=None if self.trees is None else self.trees.encoder.name,
            timings=report.timings | {"total": round(time.perf_counter() - start, 4)},
        )
        if parts is None:
            return report
        told, decides = (
            ReportPart.of(others, _some(whole[1], whole[0].ids, others.ids), report.directions)
            for others in (take_grades(whole[0], parts == REPORT), take_grades(whole[0], parts == DECISION))
        )
        return replace(report, report_part=told, decision_part=decides)

    def _publish(self, trainer: Trainer, report: FailureReport, drawn: list[Picture], folder: Path) -> None:
        """Write to every sink; one that fails is told of and left out."""
        if folder not in self._sinks:
            self._sinks[folder] = sinks_for(trainer.loggers, folder)
        for sink, error in write_all(self._sinks[folder], report, drawn, trainer.global_step):
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

    def _reference_embeddings(self, trainer: Trainer, examples: int) -> tuple[Tensor | None, str]:
        """None stands for the examples that are analysed themselves."""
        if self.reference == "validation" or self.directions is None:
            return None, f"validation ({examples} examples)"
        sample = training_sample(trainer, seed=self.seed)
        examples_of = ExampleReader(sample.dataset, sample.collate, self.reader)
        rows = torch.cat([self.directions.embed_now(images) for images in examples_of.batches(sample.ids)])
        self.directions.store.flush()
        return rows, f"train ({len(rows)} of {sample.total} examples)"

    def _draw(self, loader: Any, report: FailureReport, grades: Grades, featured: Embedded | None) -> list[Picture]:
        try:
            images = ExampleReader(dataset_of(loader), loader.collate_fn, self.reader).images
            encoder = None if self.trees is None else self.trees.encoder
            robust = encoder if encoder is not None and gives_maps(encoder) else None
            return draw_pictures(report, grades, images, featured, robust, worst_k=self.worst_k)
        except Exception as error:
            self.say_once(f"FailureModes could not draw pictures: {type(error).__name__}: {error}")
            return []


def _discovery(grades: Grades, embedded: Embedded | None, parts: Tensor | None) -> Discovery | None:
    """The examples of the discovery part with their embeddings, if all have one."""
    rows = _matching(embedded, grades.ids)
    if rows is None or parts is None:
        return None
    kept = take_grades(grades, parts == DISCOVERY)
    mine = rows[torch.isin(torch.unique(grades.ids), kept.ids)]
    return Discovery(mine, kept.labels, kept.correct, kept.ids, kept.groups)


def _matching(embedded: Embedded | None, ids: Tensor) -> Tensor | None:
    """The embeddings (U, D) of exactly the graded examples; None if not every one was embedded."""
    if embedded is None:
        return None
    found, rows = embedded
    return rows if torch.equal(found, torch.unique(ids)) else None


def _some(rows: Tensor | None, ids: Tensor, wanted: Tensor) -> Tensor | None:
    """Of rows (U, D), one for each distinct id, those of the ids that are wanted; the same ones where all are."""
    if rows is None or len(ids) == len(wanted):
        return rows
    return rows[torch.isin(torch.unique(ids), wanted)]
