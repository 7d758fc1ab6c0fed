"""The files that a run leaves on disk, and reading them back without a model.

::

    <log_dir>/failures/
        report.json, report.html         the last analysis
        examples.safetensors             its table of examples
        directions.safetensors           its failure directions
        gallery.json                     the last pictures
        features.yaml                    user-given names of features
        studies/                         studies with people: their pages and scores
        epoch=0003-step=000250/          one folder an analysis: report.json, report.md, its table of examples, images/,
                                         state of the diary
"""

from __future__ import annotations

import filecmp
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lightning_failures.core.run_paths import ANALYSIS_FOLDER, REPORT_FILE, no_single_run, own_report, runs_below
from lightning_failures.core.serialization import read_json
from lightning_failures.data.example_table import ANALYSIS_TABLE_FILE, EXAMPLES_FILE, ExampleTable
from lightning_failures.data.report import FailureReport, FeatureReport
from lightning_failures.data.study_scores import StudyReport
from lightning_failures.directions.result import DIRECTIONS_FILE, FailureDirections
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.feature_names import FEATURES_FILE, FeatureNames
from lightning_failures.report.gallery import Gallery
from lightning_failures.report.gallery_storage import load_gallery
from lightning_failures.report.studies import read_studies

Loaded = TypeVar("Loaded")

GALLERY_FILE = "gallery.json"
HTML_FILE = "report.html"

MAX_ANALYSES = 200
MAX_HISTORY_BYTES = 1 << 28
"""Limits of a history. Of a longer one, the latest quarter of the limit and every n-th analysis before are read."""

MAX_REPORT_BYTES = 1 << 29
"""Limit of one report."""

_HISTORY_CLASS_KEYS = {
    *("name", "examples", "accuracy", "cv_score", "cv_score_stderr", "p_value", "pattern", "skipped", "flagged"),
    *("aler", "base_error_rate", "error_rate_shrunk", "gain", "gain_share"),
}
_NOT_IN_HISTORY = {"groups", "features", "interventions", "timings", "slices", "confusions", "shared", "pins"}


@dataclass(frozen=True)
class Run:
    """One run, read from its files.

    Attributes:
        folder: ``<log_dir>/failures``.
        report: The last report.
        history: All reports of the same run, stage and loader, by step and epoch, including the last one. Earlier
            reports have their summary, diary and the numbers of each class, but no captions, examples, trees or
            features. Long histories are thinned out. Single validations belong to the history of their training.
        table: All examples of the report, or None without a file.
        gallery: The pictures, or None. If the stored pictures are of another analysis, the thumbnails only, because
            the examples are the same.
        directions: The failure directions of the last report, or None.
        notes: What could not be read, one sentence each.
        studies: The studies with people that were made of the run.
    """

    folder: Path
    report: FailureReport
    history: tuple[FailureReport, ...]
    table: ExampleTable | None = None
    gallery: Gallery | None = None
    directions: FailureDirections | None = None
    notes: tuple[str, ...] = ()
    studies: tuple[StudyReport, ...] = ()


def find_report(path: str | Path) -> Path:
    """Return the path of the last report of a run.

    Args:
        path: A report.json, or a folder with one: ``failures/``, the log folder of a run, or a folder above exactly one
            run.

    Raises:
        ConfigurationError: There is no run, or more than one.
    """
    path = Path(path)
    if (own := own_report(path)) is not None:
        return own if own == path else _original(own)
    found = runs_below(path)
    if (wrong := no_single_run(path, found)) is not None:
        raise ConfigurationError(wrong)
    return found[0]


def open_run(path: str | Path, *, feature_names: str | Path | None = None, gallery: Gallery | None = None) -> Run:
    """Read a run from its files.

    Damaged files other than the report are left out, with a note. Features get their current user-given names.

    Args:
        path: See :func:`find_report`.
        feature_names: YAML file with names of features; by default features.yaml of the run.
        gallery: The pictures if they are in memory; by default gallery.json of the run.

    Raises:
        ConfigurationError: There is no run, or its report or ``feature_names`` cannot be read.
    """
    found = find_report(path)
    try:
        if found.stat().st_size > MAX_REPORT_BYTES:
            raise DataError("the file is too large")
        report = FailureReport.from_json(found.read_bytes())
    except (DataError, OSError) as error:
        raise ConfigurationError(f"{found} is not a report of lightning_failures: {error}") from error
    # the files of the last analysis are next to report.json, in the folder of the run
    folder, notes = found.parent, list[str]()
    if ANALYSIS_FOLDER.fullmatch(folder.name):  # one analysis of a run
        folder = folder.parent
    last = found.parent == folder or _is_last(report, folder)
    gallery = gallery or _gallery(folder, report, last, notes)
    report = _with_feature_names(report, folder, None if feature_names is None else Path(feature_names), notes)
    studies = read_studies(folder, notes)
    return Run(
        folder,
        report,
        _history(folder, report, notes),
        _read(folder / EXAMPLES_FILE if last else found.parent / ANALYSIS_TABLE_FILE, ExampleTable.load, notes),
        gallery,
        _read(folder / DIRECTIONS_FILE, FailureDirections.load, notes) if last else None,
        tuple(notes),
        studies,
    )


def open_epoch(path: str | Path, epoch: int) -> Run:
    """Read the last analysis of an epoch from the files of a run.

    Args:
        path: The run, see :func:`find_report`.
        epoch: The epoch, counted from 0.

    Raises:
        ConfigurationError: There is no run, or it has no analysis of the epoch.
    """
    folder = find_report(path).parent
    folder = folder.parent if ANALYSIS_FOLDER.fullmatch(folder.name) else folder
    places = _analyses(folder, tested=False)
    of_epoch = [place for place in places if place.epoch == epoch]
    if not of_epoch:
        known = ", ".join(str(number) for number in sorted({place.epoch for place in places})[:40]) or "none"
        raise ConfigurationError(f"{folder} has no analysis of epoch {epoch}; it has analyses of: {known}.")
    return open_run(of_epoch[-1].path)


def report_before(folder: Path, report: FailureReport, step: int) -> FailureReport | None:
    """Return the report of the analysis before, as in a history; None if there is no readable one of the same run."""
    for place in reversed(_before(folder, report, step)):
        found = _slim_report(place.path)
        if found is None or _same_run(found, report):
            return found
    return None


def earlier_tables(run: Run) -> tuple[ExampleTable, ...]:
    """Return the tables of examples of the analyses before that of a run, by step: the first one and the latest ones.

    Analyses of other loaders or other trainings, and damaged tables, are left out.
    """
    tables = []
    for place in _before(run.folder, run.report, run.report.global_step):
        path = place.path.with_name(ANALYSIS_TABLE_FILE)
        report = _slim_report(place.path) if path.is_file() else None
        if report is None or report.dataloader != run.report.dataloader or not _same_run(report, run.report):
            continue
        table = _read(path, ExampleTable.load, [])
        if table is not None:
            tables.append(table)
    return tuple(tables)


@dataclass(frozen=True, order=True)
class _StoredReport:
    """The report file of one analysis."""

    step: int
    epoch: int
    path: Path
    size: int


def _analyses(folder: Path, tested: bool) -> list[_StoredReport]:
    """Return the stored reports of a run, by step and epoch."""
    named = [(ANALYSIS_FOLDER.fullmatch(path.parent.name), path) for path in folder.glob(f"*epoch=*/{REPORT_FILE}")]
    return sorted(
        _StoredReport(int(name[3]), int(name[2]), path, path.stat().st_size)
        for name, path in named
        if name and bool(name[1]) == tested
    )


def _before(folder: Path, report: FailureReport, step: int | None) -> list[_StoredReport]:
    """Return the analyses before one; later ones are left over from before the run was resumed.

    If steps stand still (manual optimisation), epochs decide. A single validation comes after all analyses of its step.
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
    damaged, found = 0, list[FailureReport]()
    for place in chosen:
        report = _slim_report(place.path)
        damaged += report is None
        if report is not None and report.dataloader == last.dataloader:
            found.append(report)
    training = next((one for one in reversed([*found, last]) if one.stage == "fit"), last)
    found = [one for one in found if _same_run(one, training)]
    if damaged:
        notes.append(f"{damaged} of the reports of earlier analyses cannot be read and are missing in the history.")
    return (*found, last)


def _same_run(one: FailureReport, other: FailureReport) -> bool:
    """Return whether a report is of the same training as another one; single validations belong to any training."""
    return one.run_id == other.run_id or one.stage != "fit" or other.stage != "fit"


def _chosen(places: list[_StoredReport]) -> list[_StoredReport]:
    """Return the latest reports and every n-th report before, within the limits of a history."""
    size = sum(place.size for place in places)
    most = min(MAX_ANALYSES, int(MAX_HISTORY_BYTES / size * len(places)) if size else MAX_ANALYSES)
    if len(places) <= most:
        return places
    # the latest quarter of the limit in full, the rest evenly thinned out
    latest = max(1, most // 4)
    earlier = places[:-latest]
    return earlier[:: -(-len(earlier) // max(1, most - latest))] + places[-latest:]


def _slim_report(path: Path) -> FailureReport | None:
    """Return an earlier report with the parts that a history needs; None if it is damaged."""
    try:
        data = read_json(path.read_bytes()) if path.stat().st_size <= MAX_REPORT_BYTES else None
        if isinstance(data, dict):
            data = {key: value for key, value in data.items() if key not in _NOT_IN_HISTORY}
            if isinstance(classes := data.get("classes"), list):
                data["classes"] = [_kept(entry) for entry in classes]
        return FailureReport.from_dict(data)  # type: ignore[arg-type]
    except (DataError, OSError):
        return None


def _kept(entry: Any) -> Any:
    return (
        {key: value for key, value in entry.items() if key in _HISTORY_CLASS_KEYS} if isinstance(entry, dict) else entry
    )


def _read(path: Path, load: Callable[[Path], Loaded], notes: list[str]) -> Loaded | None:
    if not path.is_file():
        return None
    try:
        return load(path)
    except (DataError, OSError) as error:
        notes.append(f"{path.name} is left out: {error}")
        return None


def _gallery(folder: Path, report: FailureReport, last: bool, notes: list[str]) -> Gallery | None:
    """Return the gallery of this analysis; of another one, the thumbnails only."""
    found = _read(folder / GALLERY_FILE, load_gallery, notes)
    if found is None or (found.epoch, found.global_step) == (report.epoch, report.global_step):
        return found
    if last and found.pictures:
        place = "another analysis" if found.epoch is None else f"epoch {found.epoch} (step {found.global_step})"
        notes.append(f"The pictures on disk are of {place}, not of this report, and are left out.")
    return replace(found, pictures=()) if last else None


def _with_feature_names(report: FailureReport, folder: Path, path: Path | None, notes: list[str]) -> FailureReport:
    """Return the report with the names of features in a file; features that it does not list are unchanged."""
    encoder = report.robust_encoder_fingerprint or ""
    if path is not None and not path.expanduser().is_file():
        raise ConfigurationError(f"The file {path} with names of features does not exist.")
    try:
        names = FeatureNames.load(path or folder / FEATURES_FILE, encoder=encoder)
    except ConfigurationError as error:
        if path is not None:
            raise
        notes.append(f"Names of features are left out: {error}")
        return report

    def annotated(feature: FeatureReport) -> FeatureReport:
        if feature.feature not in names.entries:
            return feature
        known = names.of(feature.feature)
        return replace(feature, name=known.name, tag=known.tag, action=known.action)

    return replace(report, features=tuple(map(annotated, report.features)))


def _is_last(report: FailureReport, folder: Path) -> bool:
    """Return whether an analysis is the last one of its run, whose files are next to report.json."""
    last = _slim_report(folder / REPORT_FILE)
    return last is not None and all(
        getattr(last, name) == getattr(report, name) for name in ("epoch", "global_step", "stage")
    )


def _original(place: Path) -> Path:
    """Return the report that this one is a copy of (the demo leaves a copy in its folder), else itself."""
    if any(_analyses(place.parent, tested) for tested in (False, True)):
        return place
    return next((other for other in runs_below(place.parent) if filecmp.cmp(other, place, shallow=False)), place)
