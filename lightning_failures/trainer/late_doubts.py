"""Doubts that come after an analysis: the accuracy that the module logs in its own epoch end.

Lightning calls ``on_validation_epoch_end`` of the module after that of the callbacks, which log there what others
monitor. By then the analysis is written, so the doubt is added to its files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.trainer.grading_notes import accuracy_difference
from lightning_failures.writers import FileWriter, Writer, each_writer


@dataclass(frozen=True)
class _Written:
    """An analysis that is written.

    Attributes:
        result: The analysis.
        accuracies: What may agree with the accuracy that the module logs; empty if nothing can be compared.
        writers: The writers of its folder, in the first process.
    """

    result: AnalysisResult
    accuracies: Sequence[float]
    writers: Sequence[Writer]


@dataclass(frozen=True)
class LateDoubts:
    """The analyses of one validation, until the module has logged all of its metrics.

    Attributes:
        say_once: Emits each distinct message at most once.
    """

    say_once: Callable[..., None]
    _written: dict[int, _Written] = field(default_factory=dict)  # by loader

    def expect(
        self, index: int, result: AnalysisResult, accuracies: Sequence[float], writers: Sequence[Writer]
    ) -> None:
        """Keep the analysis of a loader until :meth:`add`.

        Args:
            index: Index of the loader.
            result: The analysis.
            accuracies: See :func:`~.grading_notes.comparable_accuracies`.
            writers: The writers of its folder.
        """
        self._written[index] = _Written(result, accuracies, writers)

    def update(self, index: int, result: AnalysisResult) -> None:
        """Replace the analysis of a loader by one with more in it, such as features, if it is still expected."""
        if index in self._written:
            self._written[index] = replace(self._written[index], result=result)

    def add(self, logged: Callable[[], Mapping[str, float]]) -> dict[int, AnalysisResult]:
        """Add the doubts about the analyses of this validation, which are then forgotten.

        Args:
            logged: Returns the metrics that the module logged in this validation, by key; called if there was an
                analysis.

        Returns:
            The analyses with new doubts, by index of the loader.
        """
        doubted: dict[int, AnalysisResult] = {}
        metrics = logged() if self._written else {}
        for index, written in self._written.items():
            report = written.result.report
            doubt = accuracy_difference(written.accuracies, metrics)
            if doubt is None or doubt in report.notes:
                continue
            self.say_once(doubt)
            doubted[index] = result = written.result.with_report(notes=(*report.notes, doubt))
            files = [writer for writer in written.writers if isinstance(writer, FileWriter)]
            each_writer(files, partial(_rewrite, result))
        self._written.clear()
        return doubted


def _rewrite(result: AnalysisResult, writer: Writer) -> None:
    assert isinstance(writer, FileWriter)
    writer.rewrite(result, result.report.global_step or 0)
