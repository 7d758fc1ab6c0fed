"""The charts of the page as Vega-Lite specifications; colours come from the theme of the page.

The data of a chart are the numbers of ``report.json``, unrounded. To add a chart, add an entry to :data:`CHARTS`, or to
:data:`CLASS_CHARTS` for one chart a class: the page and its script draw every entry in the section that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_failures.core.text import clean
from lightning_failures.data.grouping import ALL_GROUPINGS, GROUPINGS
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.report.diary import is_unjudged
from lightning_failures.report.html.tree import group_title
from lightning_failures.report.sparse import sparse_report

STATUSES = {
    "new": "--series-3",
    "growing": "--series-1",
    "persisting": "--series-4",
    "shrinking": "--series-2",
    "missing": "--series-5",
    "cured": "--series-6",
    "returned": "--series-7",
}
"""The statuses of a failure mode, and the colour of each in the theme."""

DIARY_MODES = 12
"""Most failure modes in the chart of the diary; the largest are shown."""

LABELS = 6
"""Most marks of the chart of groups, and most lines of the diary, that have a label."""

Rows = list[dict[str, Any]]
"""The data of a chart."""

_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"


@dataclass(frozen=True)
class Chart:
    """One chart of the page.

    Attributes:
        section: Id of the section that shows the chart: "trees", "sparse" or "diary".
        title: Heading above the chart.
        description: Text below the chart: what it shows and how to read it.
        rows: Returns the data from the report and the history of the run; without rows the chart is left out.
        draw: Returns the Vega-Lite specification of the rows.
    """

    section: str
    title: str
    description: str
    rows: Callable[[FailureReport, Sequence[FailureReport]], Rows]
    draw: Callable[[Rows], dict[str, Any]]


@dataclass(frozen=True)
class ClassChart:
    """A chart that is drawn once for each class, in the card of the class.

    Attributes:
        title: Heading above the chart.
        description: The chart in words, for screen readers.
        rows: Returns the data of a class; without rows the chart is left out.
        draw: Returns the Vega-Lite specification; the script of the page fills in the rows of each class.
    """

    title: str
    description: str
    rows: Callable[[ClassReport], Rows]
    draw: Callable[[Rows], dict[str, Any]]


def scatter_rows(report: FailureReport) -> Rows:
    """Return one row for each group whose tree was tested; those that stand out have a label."""
    rows = [
        {
            "group": index,
            "name": f"{clean(group.class_name, 60)} ({group.grouping} group)",
            "kind": f"{group.grouping} group",
            "pattern": "pattern" if group.pattern else "no pattern",
            "size": group.size,
            "base": group.base_error_rate,
            "gain": group.aler - group.base_error_rate,
            "heldout": group.heldout_aler_minus_ber,
        }
        for index, group in enumerate(report.groups)
        if group.base_error_rate is not None and group.aler is not None and group.heldout_aler_minus_ber is not None
    ]
    for row in _standing_out(rows):
        group = report.groups[row["group"]]
        row["label"] = group_title(group.grouping, clean(group.class_name, 24))
    return rows


def _standing_out(rows: Rows) -> Rows:
    """Return the rows whose trees gain most and those that fail most, as far apart as their labels need."""
    by_gain = sorted(rows, key=lambda row: -row["heldout"])
    by_rate = sorted(rows, key=lambda row: -row["base"])
    width = max((row["base"] for row in rows), default=0) - min((row["base"] for row in rows), default=0) or 1.0
    height = max((row["heldout"] for row in rows), default=0) - min((row["heldout"] for row in rows), default=0) or 1.0
    chosen: Rows = []
    for row in (*by_gain[: LABELS - 2], *by_rate[:2]):
        near = (
            abs(row["base"] - other["base"]) < 0.25 * width and abs(row["heldout"] - other["heldout"]) < 0.08 * height
            for other in chosen
        )
        if not any(near):
            chosen.append(row)
    return chosen


def curve_rows(entry: ClassReport) -> Rows:
    """Return two rows for each point of the curve of a class, one an end."""
    ends = ("hardest", "easiest")
    return [
        {"k": point.k, "end": end, "accuracy": getattr(point, end)}
        for end in ends
        for point in entry.nearest
        if getattr(point, end) is not None
    ]


def diary_rows(history: Sequence[FailureReport], limit: int = DIARY_MODES) -> Rows:
    """Return one row for each mode and analysis that judged it, for the ``limit`` largest modes."""
    largest: dict[str, int] = {}
    for report in history:
        for mode in report.modes:
            largest[mode.name] = max(largest.get(mode.name, 0), mode.size)
    kept = sorted(largest, key=lambda name: -largest[name])[:limit]
    rows: Rows = [
        {
            "analysis": analysis,
            "place": index,
            "mode": clean(mode.name, 60),
            "epoch": report.epoch if report.epoch is not None else analysis,
            "size": mode.size,
            "status": mode.status,
            "line": "largest" if mode.name == kept[0] else "others",
        }
        for analysis, report in enumerate(history)
        for index, mode in enumerate(report.modes)
        if mode.name in kept and not is_unjudged(mode)
    ]
    ends = {row["mode"]: row for row in rows}  # the last row of each mode
    for row in sorted(ends.values(), key=lambda row: row["size"], reverse=True)[:LABELS]:
        row["label"] = row["mode"]
    return rows


def sparsity_rows(report: FailureReport) -> Rows:
    """Return one row for each layer of the path of sparse layers."""
    found = sparse_report(report)
    if found is None:
        return []
    rows: Rows = [
        {
            "features": point.features_per_class,
            "accuracy": point.accuracy,
            "lambda": point.strength,
            "layer": "this layer" if index == found.chosen else "other layers",
        }
        for index, point in enumerate(found.curve)
    ]
    if found.conditions:  # each is chosen at a lambda of its own, and the mark is their mean
        mean = {"features": found.features_per_class, "accuracy": found.accuracy, "lambda": None, "layer": "this layer"}
        rows.append(mean)
    return rows


def sparsity(rows: Rows) -> dict[str, Any]:
    """Plot accuracy over features per class. Source: Wong et al. (ICML 2021), Fig. 2."""
    x = _quantitative(
        "features",
        "features per class",
        scale={"type": "symlog", "constant": 5, "nice": False, "domainMin": 0},
        axis={"tickCount": 6},
    )
    y = _quantitative(
        "accuracy", "held-out accuracy", axis={"format": "%"}, scale={"zero": False, **_within(rows, "accuracy")}
    )
    kinds = ["this layer", "other layers"]
    points = {
        "color": _nominal("layer", kinds, ["--series-1", "--series-5"], legend=None),
        "size": _nominal("layer", kinds, [140, 25], legend=None),
        "tooltip": [
            _tooltip("features", "features per class", ".1f"),
            _tooltip("accuracy", "accuracy", ".1%"),
            _tooltip("lambda", "lambda", ".2g"),
        ],
    }
    layers: Rows = [
        {
            "transform": [{"filter": "isValid(datum.lambda)"}],
            "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.6},
        },
        {"mark": {"type": "point", "filled": True, "opacity": 1}, "encoding": points},
        _labels("layer", "datum.layer == 'this layer'", dy=-14),
    ]
    return _specification(rows, layers, {"x": x, "y": y}, height=240)


def scatter(rows: Rows) -> dict[str, Any]:
    """Plot ALER - BER over the base error rate. Source: Singla et al., Barlow (CVPR 2021), Figs 8 and 15 to 20.

    The mark is the gain on held-out examples. A line connects it with a stroke at the gain in sample, on the examples
    that grew the tree, which is the one that the paper plots.
    """
    x = _quantitative("base", "base error rate", axis={"format": "%", "tickCount": 6}, scale={"domain": _reach(rows)})
    heldout = _quantitative(
        "heldout", "held-out ALER - BER", axis={"format": "%", "tickCount": 6}, scale={"padding": 12}
    )
    in_sample = {"field": "gain", "type": "quantitative"}
    points = {
        "y": heldout,
        "shape": _nominal("kind", _kinds(rows)),
        "color": _nominal("pattern", ["pattern", "no pattern"], ["--series-1", "--series-5"]),
        "size": {"field": "size", "type": "quantitative", "legend": None, "scale": {"range": [40, 260]}},
        "tooltip": [
            _tooltip("name", "group"),
            _tooltip("base", "base error rate", ".1%"),
            _tooltip("heldout", "held-out ALER - BER", "+.1%"),
            _tooltip("gain", "in sample", "+.1%"),
            _tooltip("size", "examples"),
            _tooltip("pattern", "verdict"),
        ],
    }
    middle = sum(_reach(rows)) / 2
    layers = [
        {
            "data": {"values": [{"zero": 0}]},
            "mark": {"type": "rule", "strokeDash": [4, 4]},
            "encoding": {"x": None, "y": {"field": "zero", "type": "quantitative"}},
        },
        {"mark": {"type": "rule", "opacity": 0.5}, "encoding": {"y": in_sample, "y2": {"field": "heldout"}}},
        {"mark": {"type": "tick", "thickness": 2, "size": 12}, "encoding": {"y": in_sample}},
        {"mark": {"type": "point", "filled": True, "opacity": 0.85}, "encoding": points},
        _labels(
            "label",
            "datum.label",
            y=heldout,
            align={"expr": f"datum.base > {middle} ? 'right' : 'left'"},
            dx={"expr": f"datum.base > {middle} ? -10 : 10"},
        ),
    ]
    return _specification(rows, layers, {"x": x}, height=300)


def _reach(rows: Rows) -> list[float]:
    """Return the ends of the axis of base error rates: a little more than they take, and never outside of [0, 1]."""
    rates = [row["base"] for row in rows]
    return [max(min(rates) - 0.02, 0.0), min(max(rates) + 0.02, 1.0)]


def _within(rows: Rows, column: str) -> dict[str, float]:
    """Return an end of a scale of shares, in [0, 1], where a rounded one would pass 1."""
    return {"domainMax": 1.0} if any(row[column] > 0.95 for row in rows) else {}


def _kinds(rows: Rows) -> list[str]:
    """Return the kinds of groups in the legend: the default ones, and others that occur."""
    kinds = {row["kind"] for row in rows}
    return [f"{one.name} group" for one in ALL_GROUPINGS if one in GROUPINGS or f"{one.name} group" in kinds]


def curve(rows: Rows) -> dict[str, Any]:
    """Plot the accuracy among the K nearest images over K. Source: Jain et al. (ICLR 2023), Fig. 7b."""
    ends = ["hardest", "easiest"]
    encoding = {
        "x": _quantitative("k", "K nearest images", axis={"tickCount": 5, "tickMinStep": 1, "format": "d"}),
        "y": _quantitative("accuracy", "accuracy", scale={"domain": [0, 1]}, axis={"format": "%", "tickCount": 3}),
        "color": _nominal("end", ends, ["--series-1", "--series-5"], legend=None),
        "tooltip": [
            _tooltip("end", "nearest to the caption that is"),
            _tooltip("k", "K"),
            _tooltip("accuracy", "accuracy", ".1%"),
        ],
    }
    last = [
        {"joinaggregate": [{"op": "max", "field": "k", "as": "last"}], "groupby": ["end"]},
        {"filter": "datum.k == datum.last"},
    ]
    layers = [
        {"mark": {"type": "line", "point": True}},
        _labels("end", "datum.k == datum.last", align="right", dy=-10) | {"transform": last},
    ]
    return _specification(rows, layers, encoding, height=170)


def diary(rows: Rows) -> dict[str, Any]:
    """Plot the size of each failure mode over epochs; points show its status."""
    epochs = sorted({row["epoch"] for row in rows})
    ticks = epochs[:: -(-len(epochs) // 10)] if epochs else []  # analysed epochs alone: an axis has no others
    encoding = {
        "x": _quantitative(
            "epoch", "epoch", axis={"values": ticks, "format": "d"}, scale={"nice": False, "zero": False}
        ),
        "y": _quantitative("size", "flagged failures", axis={"tickMinStep": 1, "format": "d"}, scale={"domainMin": 0}),
    }
    lines = {
        "detail": {"field": "mode", "type": "nominal"},
        "color": _nominal("line", ["largest", "others"], ["--series-1", "--series-5"], legend=None),
        "strokeWidth": {"condition": {"test": "datum.line == 'largest'", "value": 3}, "value": 1.2},
    }
    points = {
        "color": _nominal("status", list(STATUSES), list(STATUSES.values())),
        "shape": _nominal("status", list(STATUSES)),
        "tooltip": [
            _tooltip("mode", "mode"),
            _tooltip("epoch", "epoch"),
            _tooltip("size", "flagged failures"),
            _tooltip("status", "status"),
        ],
    }
    layers = [
        {"mark": {"type": "line", "opacity": 0.7}, "encoding": lines},
        {"mark": {"type": "point", "filled": True, "size": 70, "opacity": 1}, "encoding": points},
        _labels("label", "datum.label", align="right", dy=-10),
    ]
    return _specification(rows, layers, encoding, height=300) | {
        "resolve": {"scale": {"color": "independent", "shape": "independent"}}
    }


def _quantitative(field: str, title: str, **more: Any) -> dict[str, Any]:
    """Return the channel of numbers."""
    return {"field": field, "type": "quantitative", "title": title, **more}


def _nominal(field: str, names: Sequence[str], values: Sequence[Any] = (), **more: Any) -> dict[str, Any]:
    """Return the channel of names, without a title; ``values`` are their colours or sizes, by default those of Vega."""
    scale: dict[str, Any] = {"domain": list(names)} | ({"range": list(values)} if values else {})
    return {"field": field, "type": "nominal", "title": None, "scale": scale, **more}


def _tooltip(field: str, title: str, form: str | None = None) -> dict[str, Any]:
    """Return a line of a tooltip."""
    return {"field": field, "title": title} | ({} if form is None else {"format": form})


def _labels(field: str, where: str, *, y: dict[str, Any] | None = None, **mark: Any) -> dict[str, Any]:
    """Return the layer of the labels of the rows for which a Vega expression holds."""
    encoding: dict[str, Any] = {"text": {"field": field}, "color": None}
    return {
        "transform": [{"filter": where}],
        "mark": {"type": "text", "fontSize": 12, "tooltip": None, **mark},
        "encoding": encoding | ({} if y is None else {"y": y}),
    }


def _specification(
    rows: Rows, layers: Sequence[dict[str, Any]], encoding: dict[str, Any], *, height: int
) -> dict[str, Any]:
    """Return the specification of a chart as wide as its container, without a theme: the page has its own."""
    return {
        "$schema": _SCHEMA,
        "data": {"values": rows},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "encoding": encoding,
        "layer": list(layers),
    }


CHARTS: dict[str, Chart] = {
    "scatter": Chart(
        section="trees",
        title="All groups: error rate, and how well a tree separates the failures",
        description="Each mark is a group. Groups to the right fail more often; in groups higher up, the tree"
        " separates failures of held-out examples better. A line leads from each mark to a stroke, the result in"
        " sample, which is optimistic. Larger marks are larger groups; those that stand out have a name.",
        rows=lambda report, history: scatter_rows(report),
        draw=scatter,
    ),
    "sparsity": Chart(
        section="sparse",
        title="Accuracy against sparsity",
        description="Each mark is a layer of the path: the features that a class uses on average, and the accuracy on"
        " held-out examples. The large mark is the layer that this section examines. In a multilabel task,"
        " marks are means over conditions.",
        rows=lambda report, history: sparsity_rows(report),
        draw=sparsity,
    ),
    "diary": Chart(
        section="diary",
        title="Size of the failure modes over epochs",
        description="Each line is a failure mode: its number of flagged failures; the thick one is the largest. Marks"
        " show its status. The table has the numbers.",
        rows=lambda report, history: diary_rows(history),
        draw=diary,
    ),
}
"""The charts of the page by name."""

CLASS_CHARTS: dict[str, ClassChart] = {
    "curve": ClassChart(
        title="Accuracy of the K nearest images",
        description="Accuracy among the images nearest to the hardest and to the easiest caption; the table below has"
        " the numbers.",
        rows=curve_rows,
        draw=curve,
    ),
}
"""The charts in the card of each class, by name."""
