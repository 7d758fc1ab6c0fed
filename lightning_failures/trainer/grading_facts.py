"""What the batches of a loader showed about scores and labels."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_failures.trainer.readings import LogitsSource, Reading


@dataclass(frozen=True)
class GradingFacts:
    """What was seen in the batches of a loader, for the notes of the report.

    Attributes:
        possible: The readings of scores and labels that no batch has ruled out, the preferred ones first; empty without
            a batch.
        sources: Where the scores come from.
        columns: Number of logits per example; None without a batch.
        indexed: Whether all ids are indices of the dataset.
        fractions: Smallest and largest label, if a label is a fraction.
        disagreeing: Number of examples whose returned class differs from that of the observed scores.
        largest_label: Largest label of a class; -1 without one.
        labelled: Whether the examples have labels; only examples with verdicts may have none.
        one_hot: Whether labels have a column for each class or condition.
        exclusive: Whether these columns sum to 1 in every example.
        stacked: Rows and examples of a batch that the step gave the model in several copies; None if it did not.
    """

    possible: tuple[Reading, ...] = ()
    sources: frozenset[LogitsSource] = frozenset()
    columns: int | None = None
    indexed: bool = True
    fractions: tuple[float, float] | None = None
    disagreeing: int = 0
    largest_label: int = -1
    labelled: bool = True
    one_hot: bool = False
    exclusive: bool = True
    stacked: tuple[int, int] | None = None

    def joined(self, other: GradingFacts) -> GradingFacts:
        """Return the facts of two processes; a reading must be possible in both, unless one has seen no batch."""
        possible = tuple(one for one in self.possible if one in other.possible)
        if not possible:  # one process has seen no batch
            possible = self.possible or other.possible
        ranges = [some for some in (self.fractions, other.fractions) if some is not None]
        return GradingFacts(
            possible,
            self.sources | other.sources,
            other.columns if self.columns is None else self.columns,
            self.indexed and other.indexed,
            (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None,
            self.disagreeing + other.disagreeing,
            max(self.largest_label, other.largest_label),
            self.labelled and other.labelled,
            self.one_hot or other.one_hot,
            self.exclusive and other.exclusive,
            self.stacked or other.stacked,
        )
