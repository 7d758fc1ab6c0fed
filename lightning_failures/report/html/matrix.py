"""The confusion matrix of the page: the classes with most confusions, counted in the table of examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_failures.core.arrays import as_array
from lightning_failures.data.example_table import ExampleTable

MOST_CLASSES = 20
"""Most classes of the matrix."""


@dataclass(frozen=True)
class ConfusionMatrix:
    """How often examples of one class were predicted as another.

    Attributes:
        names: Names of all classes.
        classes: Indices of the classes that are shown, ascending.
        counts: Number of examples by index of the label, then of the prediction; pairs that never occur are absent.
            Indices are strings, because they are parts of the paths of numbers.
        most: The largest number of failures in a cell that is shown.
        omitted: Number of classes that are left out.
    """

    names: tuple[str, ...]
    classes: tuple[int, ...]
    counts: dict[str, dict[str, int]]
    most: int
    omitted: int

    def count(self, label: int, prediction: int) -> int:
        """Return the number of examples with a label and a prediction."""
        return self.counts.get(str(label), {}).get(str(prediction), 0)

    def heat(self, label: int, prediction: int) -> float:
        """Return how strongly a cell is coloured, in [0, 1]: its share of the largest number of failures."""
        return 0.0 if label == prediction else self.count(label, prediction) / max(self.most, 1)


def confusion_matrix(table: ExampleTable | None, limit: int = MOST_CLASSES) -> ConfusionMatrix | None:
    """Return the confusion matrix of a table of examples.

    Args:
        table: The examples, of a task with one label and one prediction for each. None: there is no matrix.
        limit: Most classes; those with most confusions are kept.

    Returns:
        The matrix; None if there are no predictions, no failures, or several rows for an example (multilabel tasks).

    >>> import torch
    >>> labels, predictions = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 0])
    >>> columns = {"confidence": None, "values": torch.zeros(4), "class_names": ("cat", "dog", "owl")}
    >>> leaves = torch.full((4,), -1)
    >>> table = ExampleTable(torch.arange(4), labels, predictions, label_leaf=leaves, prediction_leaf=leaves, **columns)
    >>> matrix = confusion_matrix(table)
    >>> matrix.classes, matrix.count(0, 1), matrix.count(1, 0), matrix.most
    ((0, 1, 2), 1, 0, 1)
    """
    if table is None or table.predictions is None or len(np.unique(as_array(table.ids))) < len(table):
        return None
    pairs, numbers = np.unique(
        np.stack([as_array(table.labels), as_array(table.predictions)], 1), axis=0, return_counts=True
    )
    wrong = pairs[:, 0] != pairs[:, 1]
    if not wrong.any():
        return None
    confusions = np.zeros(len(table.class_names), dtype=np.int64)
    for column in (0, 1):
        np.add.at(confusions, pairs[wrong, column], numbers[wrong])
    ranked = np.argsort(-confusions, kind="stable")
    shown = np.sort(ranked[: min(limit, int(np.count_nonzero(confusions)))])
    visible = wrong & np.isin(pairs, shown).all(1)
    counts: dict[str, dict[str, int]] = {}
    for (label, prediction), number in zip(pairs.tolist(), numbers.tolist(), strict=True):
        counts.setdefault(str(label), {})[str(prediction)] = number
    most = int(numbers[visible].max(initial=0))
    omitted = int(np.count_nonzero(confusions)) - len(shown)
    return ConfusionMatrix(table.class_names, tuple(shown.tolist()), counts, most, omitted)
