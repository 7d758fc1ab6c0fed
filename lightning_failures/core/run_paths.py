"""Where the reports of runs are, found by names alone, so that a mistyped run is noticed before torch is imported."""

from __future__ import annotations

import re
from pathlib import Path

REPORT_FILE = "report.json"

ANALYSIS_FOLDER = re.compile(r"(test-)?epoch=(\d{4,15})-step=(\d{6,15})")
"""Names of the folders of single analyses."""


def own_report(path: Path) -> Path | None:
    """Return the report of a run that a path names: the file itself, or that of ``failures/`` or a log folder."""
    places = (path, path / REPORT_FILE, path / "failures" / REPORT_FILE)
    return next((place for place in places if place.is_file()), None)


def runs_below(folder: Path) -> list[Path]:
    """Return the last reports of the runs in a folder: its log folders, and the log folders of its experiments."""
    patterns = ("*/failures", "*/*/failures", "failures/*/*", "*/*")  # the last two: loggers without log folders
    places = dict.fromkeys(place for pattern in patterns for place in sorted(folder.glob(pattern)))
    return [
        place / REPORT_FILE
        for place in places
        if (place / REPORT_FILE).is_file() and not ANALYSIS_FOLDER.fullmatch(place.name)
    ]


def no_single_run(path: Path, found: list[Path]) -> str | None:
    """Return what is wrong with a path that names no run: none, or several below; None if there is exactly one.

    >>> no_single_run(Path("nowhere"), [])
    'No report.json in nowhere. A run writes <log_dir>/failures/report.json.'
    """
    if len(found) == 1:
        return None
    names = ", ".join(str(place.parent) for place in found[:9])
    return f"No {REPORT_FILE} in {path}. A run writes <log_dir>/failures/{REPORT_FILE}." + (
        f" There are {len(found)} runs below this folder; name one: {names}" if found else ""
    )
