"""What was found in a pool, as JSON files and as a printed summary."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_failures.core.atomic import TEMPORARY, write_atomically
from lightning_failures.core.text import clean, listed_reasons
from lightning_failures.data.class_names import unique_class_names
from lightning_failures.data.grading import expand_class_names
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.pools.fitted import FittedDirections
from lightning_failures.pools.manifest import PoolManifest
from lightning_failures.pools.merging import PoolSummary, merge_shards
from lightning_failures.pools.probe import REMEDY
from lightning_failures.pools.shards import POOL_UNLABELLED
from lightning_failures.pools.shopping import ShoppingList, shopping_list
from lightning_failures.pools.source import path_in
from lightning_failures.trainer.dataset_attributes import dataset_class_names
from lightning_failures.writers.labelling import LABELLING_FILES, write_labelling_files

SHOP_FOLDER = "shop"
"""Folder of the shopping list, in the folder of the pool."""

_SHOP_FILE = f"{SHOP_FOLDER}/shop.json"
_SUMMARY_FILE = "pool.json"
_HARDEST_FILE = "hardest.json"
_MAX_PRINTED_CLASSES = 10
_DAY = 24 * 60 * 60


def resolve_class_names(given: Sequence[str] | None, dataset: Any, fitted: FittedDirections | None) -> Sequence[str]:
    """Return the class names of the run or of the pool; empty if neither has any.

    Args:
        given: Class names given by the user, or None to read ``dataset.classes``.
        dataset: Dataset of the pool.
        fitted: The directions of a run, or None.

    Raises:
        ConfigurationError: The classes of the pool differ from those of the run.
    """
    pool_names = dataset_class_names(dataset) if given is None else unique_class_names(given)
    run_names = None if fitted is None or fitted.class_names is None else list(fitted.class_names)
    if pool_names is not None and len(pool_names) == 1:
        pool_names = list(expand_class_names(pool_names, "binary"))
    if pool_names is not None and run_names is not None and pool_names != run_names:
        raise ConfigurationError(
            f"The pool has the classes {_abbreviated(pool_names)}, but the run that found the directions had"
            f" {_abbreviated(run_names)}: {_first_difference(pool_names, run_names)}. Give a pool with the same classes"
            " in the same order."
        )
    return run_names or pool_names or ()


def clear_results(folder: Path, *, scored: bool) -> None:
    """Remove the results of an earlier run, and files that a killed process left unfinished more than a day ago.

    Args:
        folder: Folder of the pool.
        scored: Whether this run finds the hardest examples; if not, those of an earlier run are kept.
    """
    of_scores = (_HARDEST_FILE, _SHOP_FILE, *(f"{SHOP_FOLDER}/{name}" for name in LABELLING_FILES))
    for name in (_SUMMARY_FILE, *(of_scores if scored else ())):
        (folder / name).unlink(missing_ok=True)
    for path in (folder / "shards").glob(f".*{TEMPORARY}"):
        if time.time() - path.stat().st_mtime > _DAY:
            path.unlink(missing_ok=True)


def write_results(
    manifest: PoolManifest,
    folder: Path,
    *,
    fitted: FittedDirections | None,
    k: int,
    shop: int | None = None,
    names: Sequence[str],
    dataset: Any,
    limited: bool,
    patience: float,
) -> None:
    """Merge the shards of all processes, write pool.json, hardest.json and the shopping list, and print a summary.

    Args:
        manifest: Manifest of the pool.
        folder: Folder of the pool.
        fitted: The directions that the pool was scored with, or None.
        k: Number of hardest examples for each class.
        shop: Number of images to list for labelling, for each class with a pattern, or None.
        names: Class names.
        dataset: Dataset of the pool, which may list the files of examples.
        limited: Whether the user asked for a part of the pool only; missing shards are then no error.
        patience: Seconds to wait for missing shards, since a network file system may show them late.

    Raises:
        DataError: Shards are missing, or most examples could not be embedded.
    """
    end = time.monotonic() + patience
    while (n_missing := _count_missing(manifest, folder)) and not limited and time.monotonic() < end:
        time.sleep(1.0)
    if n_missing and limited:
        n_present = manifest.shards - n_missing
        print(
            f"{n_present} of {manifest.shards} shards of the pool are in {folder / 'shards'}. Run the command without"
            " limits to complete them."
        )
        return
    if n_missing:
        raise DataError(
            f"{n_missing} of {manifest.shards} shards are missing in {folder / 'shards'}. On several nodes, --output"
            " must be a folder that all of them share. Run the command again to complete the pool."
        )
    directions = None if fitted is None else fitted.directions
    summary = merge_shards(folder, manifest, directions=directions, k=k)
    if 2 * summary.n_left_out > manifest.examples:
        named = listed_reasons(summary.left_out, total=summary.n_left_out)
        raise DataError(
            f"{summary.n_left_out} of {manifest.examples} examples of the pool cannot be embedded: {named}. {REMEDY}"
            f" Then remove {folder / 'shards'} and run the command again."
        )
    _write_json(folder / _SUMMARY_FILE, summary.to_dict(names, lambda index: path_in(dataset, index)))
    if directions is not None:
        _write_json(folder / _HARDEST_FILE, summary.hardest(names, lambda index: path_in(dataset, index)))
    print("\n".join(_summary_lines(summary, folder, names)))
    if fitted is not None and shop is not None:
        _write_shopping_list(shopping_list(folder, manifest, fitted, shop, names=names), folder, dataset)


def _write_shopping_list(found: ShoppingList, folder: Path, dataset: Any) -> None:
    """Write the shopping list for people and for labelling tools, and print what it gains."""
    images = found.images(lambda index: path_in(dataset, index))
    files = write_labelling_files(images, folder / SHOP_FOLDER)
    _write_json(folder / _SHOP_FILE, found.to_dict())
    print("\n".join(["Shopping list:", *found.lines()]))
    if len(files) == 1:
        print("The dataset lists no files of its images, so labelling tools cannot open them: use the ids in the CSV.")
    print(f"To label: {', '.join(map(str, files))}; expected gain: {folder / _SHOP_FILE}")


def _count_missing(manifest: PoolManifest, folder: Path) -> int:
    return sum(not manifest.path(folder, number).is_file() for number in range(manifest.shards))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def _summary_lines(summary: PoolSummary, folder: Path, names: Sequence[str]) -> list[str]:
    """Return the lines to print: the size of the pool and the classes with the largest flagged share."""
    values = summary.to_dict(names)
    lines = [f"{values['examples']:,} examples in {values['shards']} shards: {folder / 'shards'}"]
    if summary.n_left_out:
        which = "example is" if summary.n_left_out == 1 else "examples are"
        named = listed_reasons(summary.left_out, total=summary.n_left_out)
        lines.append(
            f"{summary.n_left_out:,} {which} left out (see {_SUMMARY_FILE}): {named}."
            " The same command does not try them again, unless the files of their shards are removed."
        )
    if summary.directions is None:
        return [*lines, "Not scored. Use --directions with the folder of a run to find the hardest examples."]
    if all(entry["label"] == POOL_UNLABELLED for entry in values["classes"]):
        return [*lines, "No example has a label, by whose direction it could be scored."]
    with_pattern = [entry for entry in values["classes"] if entry["pattern"] and entry["flagged"]]
    with_pattern.sort(key=lambda entry: -entry["flagged"] / entry["examples"])
    if not with_pattern:
        lines.append("No class with a pattern has flagged examples here; the first listed are no harder than the rest.")
    for entry in with_pattern[:_MAX_PRINTED_CLASSES]:
        share = entry["flagged"] / entry["examples"]
        lines.append(f"  {clean(entry['class'])}: {entry['flagged']:,} of {entry['examples']:,} flagged ({share:.0%})")
    if len(with_pattern) > _MAX_PRINTED_CLASSES:
        lines.append(f"  and {len(with_pattern) - _MAX_PRINTED_CLASSES} more classes")
    return [*lines, f"Hardest examples of each class: {folder / _HARDEST_FILE}; all classes: {folder / _SUMMARY_FILE}"]


def _first_difference(pool_names: Sequence[str], run_names: Sequence[str]) -> str:
    for label, (of_pool, of_run) in enumerate(zip(pool_names, run_names, strict=False)):
        if of_pool != of_run:
            return f"label {label} is {clean(of_pool, 30)} here and {clean(of_run, 30)} there"
    return f"{len(pool_names)} against {len(run_names)}"


def _abbreviated(names: Sequence[str]) -> str:
    shown = ", ".join(clean(name, 30) for name in names[:3])
    return f"{shown}, ... ({len(names)})" if len(names) > 3 else shown
