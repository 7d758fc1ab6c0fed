"""The shopping list: which images of a pool to label, so that the patterns of a run can be fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightning_failures.core.text import clean, number
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.report import ClassReport
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.selection.candidates import ClassPicks
from lightning_failures.interventions.selection.near_duplicates import usual_similarity
from lightning_failures.interventions.selection.picker import PoolSelector
from lightning_failures.pools.fitted import FittedDirections
from lightning_failures.pools.manifest import PoolManifest
from lightning_failures.pools.shards import POOL_UNLABELLED, read_pool_shard
from lightning_failures.stats.intervals import benjamini_hochberg
from lightning_failures.writers.labelling import ImageToLabel

RESERVE = 10
"""Candidates for each wanted image, over which the images are spread."""

MAX_CANDIDATES = 200_000
"""Candidates of all classes together, whose embeddings are in memory; with more, fewer are kept for each image."""

SIMILARITY = 0.995
"""Cosine of embeddings above which two images are nearly equal, and only one is listed; higher for an encoder that maps
most images close together."""


@dataclass(frozen=True, eq=False)
class ShoppingClass:
    """The images to label for the pattern of one class.

    Attributes:
        label: Index of the class.
        name: Name of the class.
        picks: The images, the hardest first.
        guessed: (n,) bool, which of them have no label, so that the class is a guess.
        findings: What the run found about the class; None without its report.
    """

    label: int
    name: str
    picks: ClassPicks
    guessed: BoolArray
    findings: ClassReport | None = None

    @property
    def expected(self) -> dict[str, Any] | None:
        """What fixing the pattern gains at most, on the validation examples that the run analysed; None if unknown."""
        entry = self.findings
        if entry is None or entry.gain is None:
            return None
        failures = entry.failures_looked_at
        after = None if failures is None or not entry.looked_at else (failures - entry.gain) / entry.looked_at
        return {
            "failures_removed": round(entry.gain, 2),
            "failures": failures,
            "examples": entry.looked_at,
            "error_rate": None if failures is None or not entry.looked_at else failures / entry.looked_at,
            "error_rate_after": after,
            "share_of_all_failures": entry.gain_share,
        }


@dataclass(frozen=True, eq=False)
class ShoppingList:
    """The images to label, by class.

    Attributes:
        n: Number of images that were asked for, for each class with a pattern.
        classes: The classes with a pattern, those first that it pays most to fix.
    """

    n: int
    classes: tuple[ShoppingClass, ...]

    def images(self, path_of: Callable[[int], str | None] = lambda _: None) -> list[ImageToLabel]:
        """Return all images, class by class, the hardest first; ``path_of`` returns the file of the one with an id."""
        found = []
        for entry in self.classes:
            captions = () if entry.findings is None else entry.findings.hardest_captions
            rows = zip(entry.picks.ids.tolist(), entry.picks.values.tolist(), entry.guessed.tolist(), strict=True)
            for i, value, guessed in rows:
                caption = captions[0] if captions else None
                found.append(ImageToLabel(i, entry.name, path_of(i), guessed, value, caption))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: each class with the number of images and the expected gain."""
        classes = [
            {
                "class": entry.name,
                "images": len(entry.picks.ids),
                "guessed": int(entry.guessed.sum()),
                "flagged_in_pool": entry.picks.seen,
                "expected": entry.expected,
                "shortfall": entry.picks.shortfall,
            }
            for entry in self.classes
        ]
        return {"schema": 1, "per_class": self.n, "images": sum(one["images"] for one in classes), "classes": classes}

    def lines(self) -> list[str]:
        """Return the lines to print: what to label for each class, and what that gains at most."""
        lines = []
        for entry in self.classes:
            line = f"  {clean(entry.name, 60)}: {len(entry.picks.ids)} images to label"
            if (expected := entry.expected) is not None and expected["failures"] is not None:
                line += (
                    f"; fixing the pattern removes up to {number(expected['failures_removed'], '.0f')} of"
                    f" {expected['failures']} failures (error rate {number(expected['error_rate'])} ->"
                    f" {number(expected['error_rate_after'])})"
                )
            lines.append(line + (f" ({entry.picks.shortfall})" if entry.picks.shortfall else ""))
        return lines


def shopping_list(
    folder: Path, manifest: PoolManifest, fitted: FittedDirections, n: int, *, names: Sequence[str] = ()
) -> ShoppingList:
    """Select images of a pool to label: for each class with a pattern the flagged ones, spread over the candidates.

    The shards are read one by one; memory holds the candidates only. An image without a label counts for the class
    whose centre is nearest to it, which is a guess.

    Args:
        folder: Folder of the pool.
        manifest: Manifest of the pool.
        fitted: The directions of a run; with them its report, which knows the patterns and their gains.
        n: Number of images for each class with a pattern.
        names: Names of the classes.

    Raises:
        ConfigurationError: The shards hold no embeddings, no class has a pattern, or the pool has images without a
            label and the directions no class centres.
    """
    found = patterns_of(fitted)
    if not found:
        raise ConfigurationError(
            f"embed --shop: no class of {fitted.path} has a pattern, so there is nothing to shop for. Use the"
            " directions of a run whose report shows one."
        )
    reserve = max(1, min(RESERVE, MAX_CANDIDATES // (n * len(found))))
    selector = PoolSelector(n, by="decision_value", classes=found, reserve=reserve)
    directions = fitted.directions
    without_label: list[IntArray] = []
    for shard_number in range(manifest.shards):
        path = manifest.path(folder, shard_number)
        shard = read_pool_shard(path, manifest.block(shard_number), pool=manifest.digest)
        if shard.embeddings is None:
            raise ConfigurationError("embed --shop needs embeddings in the shards. Leave out --keep_embeddings=false.")
        labels, embeddings = shard.labels.clone(), shard.embeddings.float()
        unknown = labels == POOL_UNLABELLED
        if unknown.any():
            if directions.centres is None:
                raise ConfigurationError(
                    f"embed --shop: {fitted.path} was written by a former version and has no class centres, which guess"
                    " the classes of images without a label. Analyse the model with this version."
                )
            labels[unknown] = directions.nearest_class(embeddings[unknown])
        values = directions.decision_values(embeddings, labels)
        kept = (values < 0) & torch.isin(labels, torch.tensor(found))  # false for NaN
        selector.add(
            shard.ids[kept],
            labels[kept],
            decision_values=values[kept],
            keys=shard.keys[kept],
            embeddings=shard.embeddings[kept],
        )
        without_label.append(shard.ids[kept & unknown].numpy())
    candidates = selector.candidates()
    similarity = SIMILARITY if candidates is None else usual_similarity(candidates.embeddings, least=SIMILARITY)
    picks = selector.pick(similarity=similarity, diverse=True).classes
    unlabelled = np.concatenate(without_label)
    reports = dict(enumerate(fitted.classes))
    classes = [
        ShoppingClass(
            label=k,
            name=names[k] if k < len(names) else str(k),
            picks=_with_reason(picks[k], n),
            guessed=np.isin(picks[k].ids.numpy(), unlabelled),
            findings=reports.get(k),
        )
        for k in found
    ]
    classes.sort(key=lambda one: -((one.findings.gain if one.findings is not None else None) or 0.0))
    return ShoppingList(n, tuple(classes))


def patterns_of(fitted: FittedDirections) -> list[int]:
    """Return the classes with a pattern, by the report; without one by Benjamini-Hochberg over the p-values."""
    fitted_classes = fitted.directions.classes.tolist()
    if fitted.classes:
        return [k for k in fitted_classes if k < len(fitted.classes) and fitted.classes[k].pattern]
    significant = benjamini_hochberg(fitted.directions.p_value).tolist()
    return [k for k, holds in zip(fitted_classes, significant, strict=True) if holds]


def _with_reason(picks: ClassPicks, n: int) -> ClassPicks:
    """Return the picks with a reason in the words of a shopping list if there are fewer than n."""
    if len(picks.ids) >= n:
        return picks
    if not picks.seen:
        return replace(picks, shortfall="the pool has no flagged image of the class")
    return replace(picks, shortfall=f"the pool has no more than {len(picks.ids)} different flagged images of the class")
