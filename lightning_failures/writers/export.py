"""The findings of a run in the files of other tools: CSV, JSON, FiftyOne, Label Studio, cleanlab.

A run folder holds no images but thumbnails. The files of the examples are found below a folder that the user names, by
the hashes of file names in the table of examples; where there is none, the thumbnail takes its place.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import to_bytes
from lightning_failures.data.digests import file_name_hash
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.regression.pin import Pin
from lightning_failures.report.export_records import Findings, FoundExample, FoundSlice, SuspectLabel, find
from lightning_failures.report.gallery import pictures_by_id
from lightning_failures.report.image_encoding import data_uri, to_png
from lightning_failures.report.run_folder import Run
from lightning_failures.writers.csv import safe_cell
from lightning_failures.writers.labelling import (
    FIFTYONE_FILE,
    LABEL_STUDIO_CONFIG,
    LABEL_STUDIO_FILE,
    ImageToLabel,
    fiftyone_samples,
    json_bytes,
    label_studio_config,
    label_studio_tasks,
)

FORMATS = ("csv", "json", "fiftyone", "label-studio", "cleanlab")
"""Formats of :func:`export_run`."""

JSON_FILE = "findings.json"
CLEANLAB_FILE = "cleanlab.csv"
_PIN_COLUMNS = (
    "name", "class", "status", "examples", "failures", "error_rate", "level", "level_of", "p_value", "caption", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        files: Paths of the files.
        findings: What they hold.
        shown: Number of examples with an image; None for formats without images.
        thumbnails: Number of them that are shown as thumbnails, because their file was not found.
    """

    files: tuple[Path, ...]
    findings: Findings
    shown: int | None = None
    thumbnails: int = 0


def export_run(
    run: Run,
    folder: Path,
    to: str,
    *,
    images: Path | None = None,
    pins: Sequence[Pin] = (),
    every_example: bool = False,
) -> Exported:
    """Write the flagged and failed examples, labels to check, slices and pins of a run for another tool.

    Args:
        run: The run.
        folder: Where to write.
        to: One of :data:`FORMATS`.
        images: Root folder of the dataset of the run; None: examples are shown as thumbnails.
        pins: Pinned slices.
        every_example: Write all graded examples; for cleanlab, which wants a row for each, this is always so.

    Raises:
        ConfigurationError: The format is not known, or ``images`` holds none of the files of the run.
        DataError: The run has no table of examples, or for a tool of images no image.
        OSError: A file cannot be written.
    """
    if to not in FORMATS:
        raise ConfigurationError(f"export --to must be one of {', '.join(FORMATS)}, got {to!r}.")
    paths = None if images is None else files_below(images)
    found = find(run, every_example=every_example or to == "cleanlab", pins=pins, paths=paths)
    if images is not None and not any(example.path for example in found.examples) and found.examples:
        raise ConfigurationError(_no_files(run, images))
    if to in ("fiftyone", "label-studio"):
        return _export_images(run, folder, to, found)
    contents = {
        "csv": lambda: _tables(found),
        "json": lambda: {JSON_FILE: json_bytes(_as_json(run, found))},
        "cleanlab": lambda: {CLEANLAB_FILE: to_bytes(cleanlab_issues(found.examples))},
    }[to]()
    return Exported(_written(folder, contents), found)


def files_below(root: Path) -> dict[int, str]:
    """Return the path of each file below a folder by the hash of its name below the folder.

    Raises:
        ConfigurationError: The folder does not exist.
    """
    if not root.is_dir():
        raise ConfigurationError(f"export --images needs the root folder of the dataset; {root} is no folder.")
    files = {}
    for place, _, names in os.walk(root):
        for name in names:
            path = os.path.join(place, name)  # noqa: PTH118 - a dataset may have millions of files
            files[file_name_hash(os.path.relpath(path, root))] = os.path.abspath(path)  # noqa: PTH100
    return files


def cleanlab_issues(examples: Iterable[FoundExample]) -> str:
    """Return the label issues as a table with the columns of cleanlab's ``Datalab.get_issues("label")``.

    The score is the self-confidence, the predicted probability of the given label.
    Source: Northcutt et al., Confident Learning (JAIR 2021), section 3.2.

    >>> print(cleanlab_issues([FoundExample(7, "owl", "cat", True, suspect=True, confidence=0.1)]), end="")
    id,path,is_label_issue,label_score,given_label,predicted_label
    7,,True,0.1,owl,cat
    """
    head = ("id", "path", "is_label_issue", "label_score", "given_label", "predicted_label")
    return _csv(head, ((one.id, one.path, one.suspect, one.confidence, one.label, one.prediction) for one in examples))


def _as_json(run: Run, found: Findings) -> dict[str, Any]:
    report = run.report
    of_run = {"epoch": report.epoch, "global_step": report.global_step, "stage": report.stage, "run_id": report.run_id}
    return {
        "schema": 1,
        **of_run,
        "class_names": list(found.class_names),
        "examples": [example.to_dict() for example in found.examples],
        "suspects": [suspect.to_dict() for suspect in found.suspects],
        "slices": [one.to_dict() for one in found.slices],
        "pins": list(found.pins),
    }


def _tables(found: Findings) -> dict[str, bytes]:
    """Return four tables by file name."""
    return {
        "examples.csv": _records(FoundExample, found.examples),
        "suspects.csv": _records(SuspectLabel, found.suspects),
        "slices.csv": _records(FoundSlice, found.slices),
        "pins.csv": to_bytes(_csv(_PIN_COLUMNS, ([pin.get(key) for key in _PIN_COLUMNS] for pin in found.pins))),
    }


def _records(kind: type[Any], records: Sequence[Any]) -> bytes:
    """Return a table with a column for each field of a record."""
    columns = [field.name for field in fields(kind)]
    head = [field.metadata.get("key", field.name) for field in fields(kind)]
    return to_bytes(_csv(head, ([getattr(record, column) for column in columns] for record in records)))


def _csv(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table; no spreadsheet evaluates its texts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, tuple):
        value = "; ".join(value)
    return safe_cell(value, guarded=True) if isinstance(value, str) else value


# -- tools that show images ------------------------------------------------------------------------------------------


def _export_images(run: Run, folder: Path, to: str, found: Findings) -> Exported:
    """Write the examples whose file or thumbnail is there for a tool that shows images, doubtful labels first."""
    pictures = pictures_by_id(run.gallery)
    shown = [one for one in found.examples if one.path is not None or one.id in pictures]
    if not shown:
        raise DataError(
            f"Neither files nor thumbnails of the examples of {run.folder} are known, and {to} shows images. Name the"
            " root folder of the dataset (--images FOLDER), or train with pictures (pictures=True)."
        )
    shown.sort(key=lambda one: (not one.suspect, one.decision_value is None, one.decision_value or 0.0))
    without_file = {k: pictures[one.id] for k, one in enumerate(shown) if one.path is None}
    images = [_image(one) for one in shown]
    if to == "label-studio":
        for k, picture in without_file.items():
            images[k] = replace(images[k], path=data_uri(picture))
        contents = {
            LABEL_STUDIO_CONFIG: to_bytes(label_studio_config(found.class_names)),
            LABEL_STUDIO_FILE: json_bytes(label_studio_tasks(images, pool=False)),
        }
    else:
        contents = _fiftyone_files(images, without_file)
    return Exported(_written(folder, contents), found, len(shown), len(without_file))


def _fiftyone_files(images: list[ImageToLabel], without_file: Mapping[int, Tensor]) -> dict[str, bytes]:
    """Return the samples and the pictures of those without a file, whose paths are relative to the samples."""
    contents = {}
    for k, picture in without_file.items():
        images[k] = replace(images[k], path=f"data/{images[k].id}.png")
        contents[f"fiftyone/data/{images[k].id}.png"] = to_png(picture)
    serialised = fiftyone_samples(images, pool=False)
    for k in without_file:
        serialised["samples"][k]["filepath"] = images[k].path
    return contents | {FIFTYONE_FILE: json_bytes(serialised)}


def _image(example: FoundExample) -> ImageToLabel:
    facts: Mapping[str, str | float | bool | None] = {
        "failed": example.failed,
        "flagged": example.flagged,
        "suspect": example.suspect,
        "confidence": example.confidence,
        "leaf": example.leaf,
        "pins": "; ".join(example.pins) or None,
    }
    return ImageToLabel(
        example.id,
        example.label,
        example.path,
        decision_value=example.decision_value,
        caption=example.caption,
        prediction=example.prediction,
        tags=tuple(example.tags),
        facts={key: value for key, value in facts.items() if value is not None},
    )


def _no_files(run: Run, images: Path) -> str:
    if run.table is None or run.table.names is None:
        return (
            f"The run {run.folder} does not know the names of its files: its dataset lists none in `samples` or `imgs`,"
            " as an ImageFolder does. Export without --images: thumbnails take their place."
        )
    return (
        f"{images} holds none of the files of the run {run.folder}. Name the folder that was the root of the evaluated"
        " dataset, from which its file names are counted."
    )


def _written(folder: Path, contents: Mapping[str, bytes]) -> tuple[Path, ...]:
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return tuple(folder / name for name in contents)
