"""The charts of TensorBoard's "Custom Scalars" page for the keys under ``failures/``."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from lightning_failures.data.report import FailureReport

Layout = dict[str, dict[str, list[Any]]]
"""Category -> chart title -> ["Multiline", tags] or ["Margin", [value, lower, upper]]."""

CLASS = "class/[^/]+/"
CHARTS = (
    ("failures: grades", "accuracy and coverage", ("accuracy", "coverage")),
    ("failures: grades", "validations since the last analysis", ("analysis_age",)),
    ("failures: directions", "strength of the patterns (CV score)", ("cv_score_mean",)),
    ("failures: directions", "share flagged", ("flagged_fraction",)),
    ("failures: directions", "pattern shared by classes", ("shared/effect", "shared/p_value")),
    ("failures: trees", "held-out error rate of the worst slice", ("worst_slice_error_rate",)),
    ("failures: trees", "ALER - BER, held out and in sample", ("heldout_aler_minus_ber_mean", "aler_minus_ber_mean")),
    ("failures: trees", "share of groups whose leaf is valid held out", ("valid_leaf_fraction",)),
    ("failures: sparse layer", "accuracy", ("sparse/accuracy",)),
    ("failures: sparse layer", "features of a class", ("sparse/features_per_class",)),
    (
        "failures: sparse layer",
        "errors that one feature fixes, right answers that one breaks",
        ("sparse/fixed_by_one_feature", "sparse/broken_by_one_feature"),
    ),
    ("failures: worst classes", "accuracy", (f"{CLASS}accuracy",)),
    ("failures: worst classes", "CV score", (f"{CLASS}cv_score",)),
    ("failures: worst classes", "p-value", (f"{CLASS}p_value",)),
    ("failures: worst classes", "ALER in sample", (f"{CLASS}aler",)),
    *(
        (
            "failures: interventions",
            f"{part} part",
            (f"{part}/accuracy", f"{part}/worst_class_accuracy", f"{part}/flagged_error_rate"),
        )
        for part in ("report", "decision")
    ),
)
"""Category, chart title and keys (regular expressions). Titles are stable: TensorBoard merges the layouts of runs."""

_TAG = b"custom_scalars__config__"


def chart_names(report: FailureReport) -> set[str]:
    """Return the keys of :data:`CHARTS` that are logged with a report.

    >>> from lightning_failures.data.report import ClassReport
    >>> report = FailureReport(9, 0.5, (ClassReport("cat", 9, accuracy=0.5),), summary={"accuracy": 0.5}, stage="test")
    >>> sorted(chart_names(report))
    ['accuracy', 'class/[^/]+/accuracy']
    """
    logged = set(report.summary)
    if report.stage != "test":
        logged.add("analysis_age")
    graded = [entry for entry in report.classes if entry.accuracy is not None]
    for key in ("accuracy", "cv_score", "p_value", "aler"):
        if any(getattr(entry, key) is not None for entry in graded):
            logged.add(f"{CLASS}{key}")
    return logged & {key for _, _, keys in CHARTS for key in keys}


def chart_layout(names: Set[str]) -> Layout:
    """Return the charts of the given keys as ``SummaryWriter.add_custom_scalars`` takes them.

    TensorBoard matches regular expressions at the start of a tag. Ours accept the prefix of a logger and the suffix
    of a loader, and nothing else.

    >>> chart_layout({"accuracy"})["failures: grades"]
    {'accuracy and coverage': ['Multiline', ['(.+-)?failures/accuracy(/dataloader_[0-9]+)?$']]}
    """
    layout: Layout = {}
    for category, chart, keys in CHARTS:
        if tags := [_pattern(key) for key in keys if key in names]:
            layout.setdefault(category, {})[chart] = ["Multiline", tags]
    return layout


def written_layout(folder: Path) -> Layout:
    """Return the last layout written to a run, by anyone: the only one that TensorBoard shows.

    Args:
        folder: Holds the event files of the run.
    """
    found: Layout = {}
    for path in sorted(folder.glob("*tfevents*")):
        for record in _records(path):
            found = _layout(record) or found
    return found


def extended_layout(layout: Layout, names: Set[str]) -> Layout | None:
    """Add the charts of ``names`` to a layout, keeping all charts in it; return None if it holds them already.

    >>> extended_layout({"mine": {"loss": ["Multiline", ["loss"]]}}, {"accuracy"}).keys()
    dict_keys(['mine', 'failures: grades'])
    >>> extended_layout(chart_layout({"accuracy"}), {"accuracy"}) is None
    True
    """
    there = {tag for charts in layout.values() for _, tags in charts.values() for tag in tags}
    known = {key for _, _, keys in CHARTS for key in keys if _pattern(key) in there}
    if names <= known:
        return None
    ours = {category for category, _, _ in CHARTS}
    others = {category: charts for category, charts in layout.items() if category not in ours}
    return others | chart_layout(names | known)


def _pattern(key: str) -> str:
    return f"(.+-)?failures/{key}(/dataloader_[0-9]+)?$"


def _records(path: Path) -> Iterator[bytes]:
    """Yield the events of a file that may hold a layout.

    A record is 8 bytes of length, 4 of checksum, the event, and 4 of checksum.
    """
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 0
        while start + 12 <= len(data):
            end = start + 12 + struct.unpack_from("<Q", data, start)[0]
            if end > len(data):
                return  # truncated, or not an event file
            if data.find(_TAG, start + 12, end) >= 0:
                yield data[start + 12 : end]
            start = end + 4


def _layout(record: bytes) -> Layout | None:
    """Return the layout in an event; None if there is no readable one."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout as Message

    try:
        values = [value for value in Event.FromString(record).summary.value if value.tag == _TAG.decode()]
        layout: Layout = {}
        for value in values[-1:]:
            for category in Message.FromString(value.tensor.string_val[0]).category:
                layout[category.title] = {chart.title: _chart(chart) for chart in category.chart}
        return layout or None
    except (DecodeError, IndexError, ValueError):
        return None


def _chart(chart: Any) -> list[Any]:
    if chart.WhichOneof("content") == "margin":
        (series, *_) = chart.margin.series
        return ["Margin", [series.value, series.lower, series.upper]]
    return ["Multiline", list(chart.multiline.tag)]
