"""One stream over all shards of a pool: what each class has, and its hardest examples. One shard is in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from lightning_failures.pools.shards import POOL_UNLABELLED, digest_of, read_pool_shard
from lightning_failures.stats.intervals import benjamini_hochberg


@dataclass(frozen=True, eq=False)
class PoolClass:
    """One class of a pool.

    Attributes:
        label: Its number.
        examples: How many the pool has.
        flagged: Of these, those with a decision value < 0; None without directions or without an SVM.
        mean: Mean decision value; None likewise.
        picks: Its hardest examples; None likewise.
    """

    label: int
    examples: int
    flagged: int | None = None
    mean: float | None = None
    picks: ClassPicks | None = None


@dataclass(frozen=True, eq=False)
class PoolSummary:
    """What a pool holds.

    Attributes:
        manifest: The pool.
        classes: By label; :data:`~lightning_failures.pools.shards.POOL_UNLABELLED` for examples without one.
        directions: Those that the pool was scored with, or None.
        k: How many of the hardest examples of each class were wanted.
    """

    manifest: PoolManifest
    classes: tuple[PoolClass, ...]
    directions: FailureDirections | None = None
    k: int = 0

    def to_dict(self, names: Sequence[str] = ()) -> dict[str, Any]:
        """Plain values: the pool class by class, without single examples."""
        return self._head() | {"classes": [self._about(entry, names) for entry in self.classes]}

    def hardest(
        self, names: Sequence[str] = (), path_of: Callable[[int], str | None] = lambda _: None
    ) -> dict[str, Any]:
        """Plain values: the hardest examples of each class, the most negative decision value first.

        Args:
            names: Of the classes.
            path_of: From an id to the file that the example was read from, or None.
        """
        classes = []
        for entry in self.classes:
            if entry.picks is not None:
                rows = zip(entry.picks.ids.tolist(), entry.picks.values.tolist(), strict=True)
                found = [{"id": i, "decision_value": value, "path": path_of(i)} for i, value in rows]
                classes.append(self._about(entry, names) | {"hardest": found, "shortfall": entry.picks.shortfall})
        return self._head() | {"k": self.k, "classes": classes}

    def _head(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "examples": self.manifest.examples,
            "shards": self.manifest.shards,
            "encoder": self.manifest.encoder_name,
            "encoder_fingerprint": self.manifest.encoder,
            "directions": None if self.directions is None else digest_of(self.directions),
        }

    def _about(self, entry: PoolClass, names: Sequence[str]) -> dict[str, Any]:
        about = {
            "class": _name(entry.label, names),
            "label": entry.label,
            "examples": entry.examples,
            "flagged": entry.flagged,
            "mean_decision_value": entry.mean,
        }
        found = None if self.directions is None else (self.directions.classes == entry.label).nonzero().flatten()
        if self.directions is None or found is None or not len(found):
            return about | {"cv_score": None, "p_value": None, "pattern": False}
        row, p_values = int(found[0]), self.directions.p_value.numpy()
        return about | {
            "cv_score": float(self.directions.cv_score[row]),
            "p_value": None if np.isnan(p_values[row]) else float(p_values[row]),
            "pattern": bool(benjamini_hochberg(p_values)[row]),
        }


def merge_shards(
    folder: Path, manifest: PoolManifest, *, directions: FailureDirections | None = None, k: int = 100
) -> PoolSummary:
    """Read the shards one after the other and keep the ``k`` most negative decision values of each class.

    Blocks do not overlap, so no example counts twice; of exact copies, one is among the hardest. The result depends
    neither on who wrote the shards nor on their size.

    Args:
        folder: Of the pool.
        manifest: Of the pool.
        directions: Those that every shard was scored with; None: only count.
        k: Examples a class.

    Raises:
        DataError: A shard is missing, damaged, or scored with other directions.
    """
    wanted = None if directions is None else digest_of(directions)
    picker = PoolSelector(k, by="decision_value", reserve=1)
    totals: dict[int, NDArray[np.float64]] = {}
    for number in range(manifest.shards):
        path = manifest.path(folder, number)
        try:
            shard = read_pool_shard(path, manifest.block(number), pool=manifest.digest, embeddings=False)
        except (OSError, DamagedShardError) as error:
            raise DataError(
                f"{path} is missing or damaged ({error}): run the command again, it does the rest."
            ) from error
        if wanted is not None and shard.directions != wanted:
            raise DataError(f"{path} was scored with other directions: run the command again.")
        labels = shard.labels.numpy()
        values = np.full(len(labels), np.nan) if wanted is None or shard.values is None else shard.values.numpy()
        _add(totals, labels, values.astype(np.float64))
        if wanted is not None:
            picker.add(shard.ids, shard.labels, decision_values=values, keys=shard.keys)
    picks = picker.pick(similarity=1.0).classes
    classes = []
    for label, (examples, valued, flagged, total) in sorted(totals.items()):
        entry = PoolClass(label, int(examples))
        if valued:
            entry = PoolClass(label, int(examples), int(flagged), float(total / valued), picks[label])
        classes.append(entry)
    return PoolSummary(manifest, tuple(classes), directions, k)


def _add(totals: dict[int, NDArray[np.float64]], labels: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    """Count by class: examples, those with a decision value, the flagged, and the sum of the values."""
    classes, place = np.unique(labels, return_inverse=True)
    known = ~np.isnan(values)
    weights = (np.ones(len(labels)), known, known & (values < 0), np.where(known, values, 0.0))
    counts = np.stack([np.bincount(place, weights=weight) for weight in weights], axis=1)
    for label, row in zip(classes.tolist(), counts, strict=True):
        totals[label] = totals.get(label, np.zeros(len(weights))) + row


def _name(label: int, names: Sequence[str]) -> str:
    if label == POOL_UNLABELLED:
        return "unlabelled"
    return names[label] if label < len(names) else str(label)
