"""What a run leaves on disk, and how it is read back: reports, the table of examples, pictures. No model is needed.

::

    <log_dir>/failures/
        report.json, report.html         of the last analysis
        examples.safetensors             its table of examples
        directions.safetensors           its directions
        gallery.json                     the pictures that were drawn last
        features.yaml                    what people call the features
        epoch=0003-step=000250/          one folder an analysis: report.json, report.md, images/, state of the diary
"""

from __future__ import annotations

import filecmp
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lightning_failures.core.serialization import read_json
from lightning_failures.data.example_table import EXAMPLES_FILE, ExampleTable
from lightning_failures.data.report import FailureReport, FeatureReport
from lightning_failures.directions.fit import DIRECTIONS_FILE, FailureDirections
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.feature_names import FEATURES_FILE, FeatureNames
from lightning_failures.report.gallery import Gallery
from lightning_failures.report.gallery_storage import load_gallery

Loaded = TypeVar("Loaded")

REPORT_FILE = "report.json"
GALLERY_FILE = "gallery.json"
HTML_FILE = "report.html"

MOST_ANALYSES = 200
MOST_BYTES = 1 << 28
"""Of all reports that are read for a history. Of longer ones every n-th is read, and all of the latest quarter."""

MOST_BYTES_OF_ONE = 1 << 29

_NAME = re.compile(r"(test-)?epoch=(\d{4,15})-step=(\d{6,15})")
_KEPT = {
    *("name", "examples", "accuracy", "cv_score", "cv_score_stderr", "p_value", "pattern", "skipped", "flagged"),
    *("aler", "base_error_rate"),
}
_LEFT_OUT = {"groups", "features", "interventions", "timings"}


@dataclass(frozen=True)
class Run:
    """One run, as its files tell.

    Attributes:
        folder: ``<log_dir>/failures``.
        report: The last report.
        history: All reports of the same stage and loader, by step and epoch, the last one included. Those before it
            have their summary, their diary and the numbers of each class, but no captions, examples, trees or features.
            Of very many, some are left out. Single validations belong to the history of their training.
        table: All examples of the last report; None where there is no file.
        gallery: The pictures; None where there are none. Where those on disk are of another analysis, only the
            thumbnails: they are examples.
        directions: Those of the last report; None where there are none.
        notes: What could not be read, one sentence each.
    """

    folder: Path
    report: FailureReport
    history: tuple[FailureReport, ...]
    table: ExampleTable | None = None
    gallery: Gallery | None = None
    directions: FailureDirections | None = None
    notes: tuple[str, ...] = ()


def find_report(path: str | Path) -> Path:
    """Find the last report of a run.

    Args:
        path: A report.json, or a folder that holds one: ``failures/``, the log folder of a run, or one in which a
            single run lies.

    Raises:
        ConfigurationError: There is none, or more than one run.
    """
    path = Path(path)
    if path.is_file():
        return path
    for place in (path / REPORT_FILE, path / "failures" / REPORT_FILE):
        if place.is_file():
            return _original(place)
    found = _runs_below(path)
    if len(found) == 1:
        return found[0]
    told = "".join(f"\n  {place.parent}" for place in found[:9])
    raise ConfigurationError(
        f"No {REPORT_FILE} in {path}. A run keeps it in <log_dir>/failures/{REPORT_FILE}."
        + (f" There are {len(found)} runs below, name one:{told}" if found else "")
    )


def open_run(path: str | Path, *, feature_names: str | Path | None = None, gallery: Gallery | None = None) -> Run:
    """Read a run from its files.

    What is damaged beside the report itself is left out, with a note. Features are called what people call them now.

    Args:
        path: As in :func:`find_report`.
        feature_names: YAML file with names of features. None: features.yaml of the run.
        gallery: The pictures, where they are at hand. None: gallery.json of the run.

    Raises:
        ConfigurationError: There is no run, or its report or ``feature_names`` cannot be read.
    """
    found = find_report(path)
    try:
        if found.stat().st_size > MOST_BYTES_OF_ONE:
            raise DataError("it is too large")
        report = FailureReport.from_json(found.read_bytes())
    except (DataError, OSError) as error:
        raise ConfigurationError(f"{found} is no report of lightning_failures: {error}") from error
    folder, notes = found.parent, list[str]()
    if _NAME.fullmatch(folder.name):  # one analysis of a run
        folder = folder.parent
    last = found.parent == folder or _is_last(report, folder)
    gallery = gallery or _gallery(folder, report, last, notes)
    report = _named(report, folder, None if feature_names is None else Path(feature_names), notes)
    return Run(
        folder,
        report,
        _history(folder, report, notes),
        _read(folder / EXAMPLES_FILE, ExampleTable.load, notes) if last else None,
        gallery,
        _read(folder / DIRECTIONS_FILE, FailureDirections.load, notes) if last else None,
        tuple(notes),
    )


def report_before(folder: Path, report: FailureReport, step: int) -> FailureReport | None:
    """The report of the analysis before, in the form that a history has; None where there is none that can be read."""
    before = _before(folder, report, step)
    return _slim_report(before[-1].path) if before else None


@dataclass(frozen=True, order=True)
class _Place:
    """The report of one analysis."""

    step: int
    epoch: int
    path: Path
    size: int


def _analyses(folder: Path, tested: bool) -> list[_Place]:
    """By step and epoch."""
    named = [(_NAME.fullmatch(path.parent.name), path) for path in folder.glob(f"*epoch=*/{REPORT_FILE}")]
    return sorted(
        _Place(int(name[3]), int(name[2]), path, path.stat().st_size)
        for name, path in named
        if name and bool(name[1]) == tested
    )


def _before(folder: Path, report: FailureReport, step: int | None) -> list[_Place]:
    """The analyses before one; what lies beyond was left behind by a training that went another way.

    Steps may stand still (manual optimisation), then epochs count. A single validation is after all of its step.
    """
    places = _analyses(folder, report.stage == "test")
    if step is None:
        return places
    epoch = report.epoch or 0
    end = (step, math.inf if report.stage == "validate" else epoch)
    return [place for place in places if (step, epoch) != (place.step, place.epoch) < end]


def _history(folder: Path, last: FailureReport, notes: list[str]) -> tuple[FailureReport, ...]:
    places = _before(folder, last, last.global_step)
    chosen = _chosen(places)
    if len(chosen) < len(places):
        notes.append(f"The history shows {len(chosen) + 1} of {len(places) + 1} analyses.")
    damaged, found = 0, []
    for place in chosen:
        report = _slim_report(place.path)
        damaged += report is None
        if report is not None and report.dataloader == last.dataloader:
            found.append(report)
    if damaged:
        notes.append(f"{damaged} of the reports of earlier analyses cannot be read: the history goes without them.")
    return (*found, last)


def _chosen(places: list[_Place]) -> list[_Place]:
    """The latest ones, and of those before them every n-th, so that all together are not too many."""
    size = sum(place.size for place in places)
    most = min(MOST_ANALYSES, int(MOST_BYTES / size * len(places)) if size else MOST_ANALYSES)
    if len(places) <= most:
        return places
    latest = max(1, most // 4)
    earlier = places[:-latest]
    return earlier[:: -(-len(earlier) // max(1, most - latest))] + places[-latest:]


def _slim_report(path: Path) -> FailureReport | None:
    """Without all that is not needed of an earlier report; None if it is damaged."""
    try:
        data = read_json(path.read_bytes()) if path.stat().st_size <= MOST_BYTES_OF_ONE else None
        if isinstance(data, dict):
            data = {key: value for key, value in data.items() if key not in _LEFT_OUT}
            if isinstance(classes := data.get("classes"), list):
                data["classes"] = [_kept(entry) for entry in classes]
        return FailureReport.from_dict(data)  # type: ignore[arg-type]
    except (DataError, OSError):
        return None


def _kept(entry: Any) -> Any:
    return {key: value for key, value in entry.items() if key in _KEPT} if isinstance(entry, dict) else entry


def _read(path: Path, load: Callable[[Path], Loaded], notes: list[str]) -> Loaded | None:
    if not path.is_file():
        return None
    try:
        return load(path)
    except (DataError, OSError) as error:
        notes.append(f"{path.name} is left out: {error}")
        return None


def _gallery(folder: Path, report: FailureReport, last: bool, notes: list[str]) -> Gallery | None:
    """The pictures of this analysis; of another one only what there is to look through."""
    found = _read(folder / GALLERY_FILE, load_gallery, notes)
    if found is None or (found.epoch, found.global_step) == (report.epoch, report.global_step):
        return found
    if last and found.pictures:
        place = "another analysis" if found.epoch is None else f"epoch {found.epoch} (step {found.global_step})"
        notes.append(f"The pictures on disk are of {place}, not of this report: they are left out.")
    return replace(found, pictures=()) if last else None


def _named(report: FailureReport, folder: Path, path: Path | None, notes: list[str]) -> FailureReport:
    """With the names of features in a file; those that it does not list keep theirs."""
    encoder = report.robust_encoder_fingerprint or ""
    if path is not None and not path.expanduser().is_file():
        raise ConfigurationError(f"There is no file {path} with names of features.")
    try:
        names = FeatureNames.load(path or folder / FEATURES_FILE, encoder=encoder)
    except ConfigurationError as error:
        if path is not None:
            raise
        notes.append(f"Names of features are left out: {error}")
        return report

    def told(feature: FeatureReport) -> FeatureReport:
        known = names.of(feature.feature)
        return replace(feature, name=known.name, tag=known.tag, action=known.action)

    return replace(
        report, features=tuple(told(one) if one.feature in names.entries else one for one in report.features)
    )


def _is_last(report: FailureReport, folder: Path) -> bool:
    """Whether an analysis of a run is the last one, whose files lie beside report.json."""
    last = _slim_report(folder / REPORT_FILE)
    return last is not None and all(
        getattr(last, name) == getattr(report, name) for name in ("epoch", "global_step", "stage")
    )


def _original(place: Path) -> Path:
    """The report that this one is a copy of, as the demo leaves one in its folder; else itself."""
    if any(_analyses(place.parent, tested) for tested in (False, True)):
        return place
    return next((other for other in _runs_below(place.parent) if filecmp.cmp(other, place, shallow=False)), place)


def _runs_below(folder: Path) -> list[Path]:
    """The last reports of runs in a folder: its log folders, and the log folders of its experiments."""
    patterns = ("*/failures", "*/*/failures", "failures/*/*", "*/*")  # the latter of loggers without log folders
    places = dict.fromkeys(place for pattern in patterns for place in sorted(folder.glob(pattern)))
    return [
        place / REPORT_FILE for place in places if (place / REPORT_FILE).is_file() and not _NAME.fullmatch(place.name)
    ]
