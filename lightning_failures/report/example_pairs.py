"""Which example of one run is which example of another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_failures.core.arrays import as_array
from lightning_failures.core.types import IntArray
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.joining import ExampleKeys, join_examples
from lightning_failures.errors import DataError

Join = Literal["name", "id", "index"]
"""Ways to join two runs other than by their images."""

JOINED_BY = {
    "digest": "their images",
    "name": "their file names",
    "id": "the ids that were given by read_batch",
    "index": "their index in the dataset",
    "former": "id",
}
"""How examples were joined -> the same in words; "former": by id, because a run has no digests."""


@dataclass(frozen=True, eq=False)
class ExamplePairs:
    """The examples of two runs under common numbers.

    Attributes:
        a: (N_a,) int64, number of the example of each row of the first table.
        b: (N_b,) int64, the same for the second table; two rows with one number are the same example.
        joined: Number of examples that are in both.
        moved: Number of examples in both whose ids differ.
        changed: Number of examples in both whose images differ, where they were joined by something else; None if it is
            unknown.
        by: How they were joined, a key of ``JOINED_BY``.
    """

    a: IntArray
    b: IntArray
    joined: int
    moved: int
    changed: int | None
    by: str


def pair_examples(a: ExampleTable, b: ExampleTable, join: Join | None = None) -> ExamplePairs:
    """Join the examples of two runs: by the digests of their images, or as the user asks.

    Of several copies of one image, those with the same labels are joined first. Runs without digests are joined by id.

    Raises:
        DataError: A run lacks what ``join`` names.
    """
    if join is not None:
        _check(a, b, join)
    has_digests = a.digests is not None and b.digests is not None
    by = join or ("digest" if has_digests else "former")

    # one row for each example: (n_a,) and (n_b,)
    ids_a, first_a, rows_a = np.unique(as_array(a.ids), return_index=True, return_inverse=True)
    ids_b, first_b, rows_b = np.unique(as_array(b.ids), return_index=True, return_inverse=True)
    column = {"digest": "digests", "name": "names"}.get(by)
    one = ExampleKeys(ids_a, None if column is None else as_array(getattr(a, column))[first_a])
    other = ExampleKeys(ids_b, None if column is None else as_array(getattr(b, column))[first_b])
    joined_a, joined_b = _join(one, other, _signatures(a, rows_a), _signatures(b, rows_b))

    # examples of the second run that are in both get the number of the first
    numbers = np.arange(len(one), len(one) + len(other))
    numbers[joined_b] = joined_a
    changed = None
    if by != "digest" and has_digests:
        digests_a, digests_b = as_array(a.digests)[first_a], as_array(b.digests)[first_b]
        changed = int(np.count_nonzero(digests_a[joined_a] != digests_b[joined_b]))
    moved = int(np.count_nonzero(ids_a[joined_a] != ids_b[joined_b]))
    return ExamplePairs(rows_a, numbers[rows_b], len(joined_a), moved, changed, by)


def paired_rows(
    a: ExampleTable, b: ExampleTable, examples: ExamplePairs, names: Sequence[str]
) -> tuple[IntArray, IntArray]:
    """Return the rows (n,) of both tables that hold the same example under the same label.

    Args:
        a: The first table.
        b: The second table.
        examples: Their examples under common numbers.
        names: Names of the classes of both.
    """
    index_of = {name: index for index, name in enumerate(names)}
    keys = []
    for table, numbers in ((a, examples.a), (b, examples.b)):
        labels = np.array([index_of[name] for name in table.class_names], dtype=np.int64)[as_array(table.labels)]
        keys.append(numbers * len(names) + labels)
    _, rows_a, rows_b = np.intersect1d(*keys, return_indices=True)
    return rows_a, rows_b


def ways_to_join(a: ExampleTable, b: ExampleTable) -> str:
    """Return the ways to join two runs other than by their images, as options of ``lightning-failures diff``."""
    ways = []
    if a.names is not None and b.names is not None:
        ways.append("--join name (by file name)")
    if a.indexed is not True and b.indexed is not True:
        ways.append("--join id (by the ids that read_batch gave)")
    if a.indexed is not False and b.indexed is not False:
        ways.append("--join index (if both datasets list the same examples in the same order)")
    return " or ".join(ways) or "ids of your own, returned by read_batch in both runs"


def _join(
    one: ExampleKeys, other: ExampleKeys, signatures: list[tuple[str, ...]], other_signatures: list[tuple[str, ...]]
) -> tuple[IntArray, IntArray]:
    """Join examples with the same digest and the same labels first, then the others with the same digest."""
    if one.digests is None or other.digests is None:
        return join_examples(one, other)
    numbers: dict[tuple[int, tuple[str, ...]], int] = {}

    def with_labels(keys: ExampleKeys, labels: list[tuple[str, ...]]) -> ExampleKeys:
        assert keys.digests is not None
        both = zip(keys.digests.tolist(), labels, strict=True)
        combined = [digest if digest < 0 else numbers.setdefault((digest, own), len(numbers)) for digest, own in both]
        return ExampleKeys(keys.ids, np.array(combined, dtype=np.int64))

    rows, others = join_examples(with_labels(one, signatures), with_labels(other, other_signatures))
    left, other_left = np.delete(np.arange(len(one)), rows), np.delete(np.arange(len(other)), others)
    more, more_others = join_examples(one.take(left), other.take(other_left))
    return np.concatenate([rows, left[more]]), np.concatenate([others, other_left[more_others]])


def _signatures(table: ExampleTable, example_of_row: IntArray) -> list[tuple[str, ...]]:
    """Return the names of the labels of each example: one, or one for each condition of a multilabel task."""
    labels: list[list[str]] = [[] for _ in range(int(example_of_row.max(initial=-1)) + 1)]
    for example, label in zip(example_of_row.tolist(), as_array(table.labels).tolist(), strict=True):
        labels[example].append(table.class_names[label])
    return [tuple(sorted(own)) for own in labels]


def _check(a: ExampleTable, b: ExampleTable, join: Join) -> None:
    """Raise an error if a run lacks what it should be joined by."""
    for side, table in (("a", a), ("b", b)):
        if join == "name" and table.names is None:
            raise DataError(
                f"run {side} has no file names, which are read from `samples` or `imgs` of a dataset like ImageFolder."
                f" The runs can be joined by {ways_to_join(a, b)}"
            )
        if join == "id" and table.indexed is True:
            raise DataError(
                f"the ids of run {side} are indices of its dataset, not ids of your own (read_batch). The runs can be"
                f" joined by {ways_to_join(a, b)}"
            )
        if join == "index" and table.indexed is False:
            raise DataError(
                f"the ids of run {side} were given by read_batch and are no indices. The runs can be joined by"
                f" {ways_to_join(a, b)}"
            )
