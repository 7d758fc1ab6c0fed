"""One stream over all shards of a pool: statistics and hardest examples of each class, one shard in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.safetensors_io import DamagedShardError
from lightning_failures.directions.result import FailureDirections
from lightning_failures.errors import DataError
from lightning_failures.interventions.selection.candidates import ClassPicks
from lightning_failures.interventions.selection.picker import PoolSelector
from lightning_failures.pools.manifest import PoolManifest
from lightning_failures.pools.shards import POOL_UNLABELLED, directions_digest, read_pool_shard
from lightning_failures.stats.intervals import benjamini_hochberg

MAX_NAMED = 1000
"""Largest number of left out examples that a summary names."""


@dataclass(frozen=True, eq=False)
class PoolClass:
    """One class of a pool. Without directions, or without an SVM for the class, it has only a count.

    Attributes:
        label: Index of the class.
        examples: Number of its examples in the pool.
        flagged: Number of its examples with a decision value < 0, or None.
        mean: Mean decision value, or None.
        picks: Its hardest examples, or None.
    """

    label: int
    examples: int
    flagged: int | None = None
    mean: float | None = None
    picks: ClassPicks | None = None


@dataclass(frozen=True, eq=False)
class PoolSummary:
    """What was found in a pool.

    Attributes:
        manifest: The pool.
        classes: The classes, ordered by label; examples without a label are a class of their own, with label
            :data:`~lightning_failures.pools.shards.POOL_UNLABELLED`.
        directions: The directions that the pool was scored with, or None.
        k: Number of hardest examples that were requested for each class.
        left_out: Reasons for the first examples that could not be embedded, by id.
        n_left_out: Number of all of them; they are in no class.
    """

    manifest: PoolManifest
    classes: tuple[PoolClass, ...]
    directions: FailureDirections | None = None
    k: int = 0
    left_out: Mapping[int, str] = field(default_factory=dict)
    n_left_out: int = 0

    def to_dict(
        self, names: Sequence[str] = (), path_of: Callable[[int], str | None] = lambda _: None
    ) -> dict[str, Any]:
        """Return JSON values: statistics of the pool and of each class, and the examples that were left out.

        Args:
            names: Names of the classes.
            path_of: Returns the file of the example with an id, or None.
        """
        named = [{"id": i, "reason": reason, "path": path_of(i)} for i, reason in self.left_out.items()]
        values = self._pool_values() | {"left_out": {"examples": self.n_left_out, "first": named}}
        return values | {"classes": [values for _, values in self._class_values(names)]}

    def hardest(
        self, names: Sequence[str] = (), path_of: Callable[[int], str | None] = lambda _: None
    ) -> dict[str, Any]:
        """Return JSON values: the hardest examples of each class, the most negative decision value first.

        Args:
            names: Names of the classes.
            path_of: Returns the file of the example with an id, or None.
        """
        classes = []
        for entry, values in self._class_values(names):
            if entry.picks is not None:
                pairs = zip(entry.picks.ids.tolist(), entry.picks.values.tolist(), strict=True)
                hardest = [{"id": i, "decision_value": value, "path": path_of(i)} for i, value in pairs]
                classes.append(values | {"hardest": hardest, "shortfall": entry.picks.shortfall})
        return self._pool_values() | {"k": self.k, "classes": classes}

    def _pool_values(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "examples": self.manifest.examples,
            "shards": self.manifest.shards,
            "encoder": self.manifest.encoder_name,
            "encoder_fingerprint": self.manifest.encoder,
            "directions": None if self.directions is None else directions_digest(self.directions),
        }

    def _class_values(self, names: Sequence[str]) -> list[tuple[PoolClass, dict[str, Any]]]:
        """Return each class with its values that both files hold: its statistics and those of its direction."""
        of_direction: dict[int, dict[str, Any]] = {}
        if self.directions is not None:
            found = self.directions
            columns = (found.classes, found.cv_score, found.p_value, benjamini_hochberg(found.p_value))
            for label, score, p_value, pattern in zip(*(column.tolist() for column in columns), strict=True):
                p_value = None if np.isnan(p_value) else p_value
                of_direction[label] = {"cv_score": score, "p_value": p_value, "pattern": pattern}
        unknown = {"cv_score": None, "p_value": None, "pattern": False}
        pairs = []
        for entry in self.classes:
            values = {
                "class": _class_name(entry.label, names),
                "label": entry.label,
                "examples": entry.examples,
                "flagged": entry.flagged,
                "mean_decision_value": entry.mean,
            }
            pairs.append((entry, values | of_direction.get(entry.label, unknown)))
        return pairs


def merge_shards(
    folder: Path, manifest: PoolManifest, *, directions: FailureDirections | None = None, k: int = 100
) -> PoolSummary:
    """Read the shards one by one and keep the ``k`` most negative decision values of each class.

    Blocks do not overlap, so no example counts twice; of exact copies, only one is listed. The result depends neither
    on which processes wrote the shards nor on the shard size.

    Args:
        folder: Folder of the pool.
        manifest: Manifest of the pool.
        directions: The directions that every shard was scored with; None: only count.
        k: Number of hardest examples for each class.

    Raises:
        DataError: A shard is missing, damaged, or scored with other directions.
    """
    required = None if directions is None else directions_digest(directions)
    selector = PoolSelector(k, by="decision_value", reserve=1)
    totals: dict[int, NDArray[np.float64]] = {}
    left_out: dict[int, str] = {}
    n_left_out = 0
    for number in range(manifest.shards):
        path = manifest.path(folder, number)
        try:
            shard = read_pool_shard(path, manifest.block(number), pool=manifest.digest, embeddings=False)
        except (OSError, DamagedShardError) as error:
            raise DataError(
                f"{path} is missing or damaged ({error}). Run the command again to complete the pool."
            ) from error
        if required is not None and shard.directions != required:
            raise DataError(f"{path} was scored with other directions. Run the command again to score it.")
        n_left_out += len(shard.left_out)
        left_out |= dict(islice(shard.left_out.items(), MAX_NAMED - len(left_out)))
        labels = shard.labels.numpy()
        values = np.full(len(labels), np.nan)
        if required is not None and shard.values is not None:
            values = shard.values.numpy()
        _add_totals(totals, labels, values.astype(np.float64))
        if required is not None:
            selector.add(shard.ids, shard.labels, decision_values=values, keys=shard.keys)
    picks = selector.pick(similarity=1.0).classes
    classes = []
    for label in sorted(totals):
        examples, valued, flagged, total = totals[label].tolist()
        if valued:
            entry = PoolClass(label, int(examples), int(flagged), total / valued, picks[label])
        else:
            entry = PoolClass(label, int(examples))
        classes.append(entry)
    return PoolSummary(manifest, tuple(classes), directions, k, left_out, n_left_out)


def _add_totals(totals: dict[int, NDArray[np.float64]], labels: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    """Add a shard to the totals of each class: examples, examples with a value, flagged examples, sum of values."""
    classes, class_rows = np.unique(labels, return_inverse=True)
    has_value = ~np.isnan(values)
    weights = (np.ones(len(labels)), has_value, has_value & (values < 0), np.where(has_value, values, 0.0))
    counts = np.stack([np.bincount(class_rows, weights=weight) for weight in weights], axis=1)
    for label, row in zip(classes.tolist(), counts, strict=True):
        totals[label] = totals.get(label, np.zeros(len(weights))) + row


def _class_name(label: int, names: Sequence[str]) -> str:
    if label == POOL_UNLABELLED:
        return "unlabelled"
    return names[label] if label < len(names) else str(label)
