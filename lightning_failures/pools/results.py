"""What is found in a pool, as files and in words."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_failures.core.atomic import TEMPORARY, write_atomically
from lightning_failures.core.text import clean
from lightning_failures.data.grading import expand_class_names
from lightning_failures.directions.result import FailureDirections
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.pools.fitted import FittedDirections
from lightning_failures.pools.manifest import PoolManifest
from lightning_failures.pools.merging import PoolSummary, merge_shards
from lightning_failures.pools.source import path_in
from lightning_failures.trainer.grader import unique_class_names
from lightning_failures.trainer.index_recorder import dataset_attribute

_SUMMARY, _HARDEST = "pool.json", "hardest.json"
_TOLD = 10  # classes, in words
_DAY = 24 * 60 * 60


def agreed_names(given: Sequence[str] | None, dataset: Any, fitted: FittedDirections | None) -> Sequence[str]:
    """Return the names of the classes; none where nobody gives any.

    Raises:
        ConfigurationError: The labels of the pool mean other classes than those of the run that found the directions.
    """
    of_pool = unique_class_names(dataset_attribute(dataset, "classes") if given is None else given)
    of_run = None if fitted is None or fitted.class_names is None else list(fitted.class_names)
    if of_pool is not None and len(of_pool) == 1:
        of_pool = list(expand_class_names(of_pool, "binary"))
    if of_pool is not None and of_run is not None and of_pool != of_run:
        raise ConfigurationError(
            f"The pool has the classes {_some(of_pool)}, the run that found the directions had {_some(of_run)}:"
            f" {_difference(of_pool, of_run)}. Give a pool with the same classes in the same order."
        )
    return of_run or of_pool or ()


def clear_results(folder: Path, *, scored: bool) -> None:
    """Remove what an earlier run has concluded, and what a killed one has left half written.

    Args:
        folder: Of the pool.
        scored: Whether this run finds the hardest examples.
    """
    for name in (_SUMMARY, _HARDEST) if scored else (_SUMMARY,):
        (folder / name).unlink(missing_ok=True)
    for path in (folder / "shards").glob(f".*{TEMPORARY}"):
        if time.time() - path.stat().st_mtime > _DAY:
            path.unlink(missing_ok=True)


def conclude(
    manifest: PoolManifest,
    folder: Path,
    *,
    directions: FailureDirections | None,
    k: int,
    names: Sequence[str],
    dataset: Any,
    limited: bool,
    patience: float,
) -> None:
    """Merge the shards of all processes, write pool.json and hardest.json, and tell what was found.

    Args:
        manifest: Of the pool.
        folder: Of the pool.
        directions: What it was scored with, or None.
        k: Examples a class.
        names: Of the classes.
        dataset: Tells the files of examples.
        limited: Whether the user wanted a part of the pool only.
        patience: Seconds to wait for the last shards to be seen from here: a network file system takes its time.

    Raises:
        DataError: Shards are missing.
    """
    end = time.monotonic() + patience
    while (lacking := _lacking(manifest, folder)) and not limited and time.monotonic() < end:
        time.sleep(1.0)
    if lacking and limited:
        print(f"{manifest.shards - lacking} of {manifest.shards} shards of the pool are in {folder / 'shards'}. Run the"
              " command without limits and it does the rest.")  # fmt: skip
        return
    if lacking:
        raise DataError(
            f"{lacking} of {manifest.shards} shards are not in {folder / 'shards'}. On several nodes --output must be a"
            " folder that all of them share. Run the command again: it does the rest."
        )
    summary = merge_shards(folder, manifest, directions=directions, k=k)
    _write(folder / _SUMMARY, summary.to_dict(names))
    if directions is not None:
        _write(folder / _HARDEST, summary.hardest(names, lambda index: path_in(dataset, index)))
    print("\n".join(_in_words(summary, folder, names)))


def _lacking(manifest: PoolManifest, folder: Path) -> int:
    return sum(not manifest.path(folder, number).is_file() for number in range(manifest.shards))


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def _in_words(summary: PoolSummary, folder: Path, names: Sequence[str]) -> list[str]:
    told = summary.to_dict(names)
    lines = [f"{told['examples']:,} examples in {told['shards']} shards: {folder / 'shards'}"]
    if summary.directions is None:
        return [*lines, "Not scored: with --directions, the folder of a run, the hardest examples are found."]
    found = sorted(
        (entry for entry in told["classes"] if entry["pattern"] and entry["flagged"]),
        key=lambda entry: -entry["flagged"] / entry["examples"],
    )
    if not found:
        lines.append("No class with a pattern has flagged examples here: what comes first is no harder than the rest.")
    for entry in found[:_TOLD]:
        share = entry["flagged"] / entry["examples"]
        lines.append(f"  {clean(entry['class'])}: {entry['flagged']:,} of {entry['examples']:,} flagged ({share:.0%})")
    if len(found) > _TOLD:
        lines.append(f"  and {len(found) - _TOLD} more classes")
    return [*lines, f"The hardest of each class: {folder / _HARDEST}; all classes: {folder / _SUMMARY}"]


def _difference(one: Sequence[str], other: Sequence[str]) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    told = (f"label {k} is {clean(a, 30)} here and {clean(b, 30)} there" for k, (a, b) in pairs if a != b)
    return next(told, f"{len(one)} against {len(other)}")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(clean(name, 30) for name in names[:3])
    return f"{shown}, ... ({len(names)})" if len(names) > 3 else shown
