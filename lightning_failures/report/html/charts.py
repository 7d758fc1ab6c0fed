"""The charts of the page as Vega-Lite specifications, made with altair; colours come from the theme of the page.

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

Rows = list[dict[str, Any]]
"""The data of a chart."""


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
    """Return one row for each group whose tree was tested."""
    return [
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
    """Return one row for each mode and analysis, for the ``limit`` largest modes."""
    largest: dict[str, int] = {}
    for report in history:
        for mode in report.modes:
            largest[mode.name] = max(largest.get(mode.name, 0), mode.size)
    kept = set(sorted(largest, key=lambda name: -largest[name])[:limit])
    return [
        {
            "analysis": analysis,
            "place": index,
            "mode": clean(mode.name, 60),
            "epoch": report.epoch if report.epoch is not None else analysis,
            "size": mode.size,
            "status": mode.status,
        }
        for analysis, report in enumerate(history)
        for index, mode in enumerate(report.modes)
        if mode.name in kept
    ]


def sparsity_rows(report: FailureReport) -> Rows:
    """Return one row for each layer of the path of sparse layers."""
    found = sparse_report(report)
    if found is None:
        return []
    return [
        {
            "features": point.features_per_class,
            "accuracy": point.accuracy,
            "lambda": point.strength,
            "layer": "this layer" if index == found.chosen else "other layers",
        }
        for index, point in enumerate(found.curve)
    ]


def sparsity(rows: Rows) -> dict[str, Any]:
    """Plot accuracy over features per class. Source: Wong et al. (ICML 2021), Fig. 2."""
    import altair as alt

    base = alt.Chart({"values": rows})
    x = alt.X(
        "features:Q",
        title="features per class",
        scale=alt.Scale(type="symlog", constant=5, nice=False),
        axis=alt.Axis(tickCount=6),
    )
    y = alt.Y("accuracy:Q", title="held-out accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False))
    line = base.mark_line(strokeWidth=1.5, opacity=0.6).encode(x=x, y=y)
    points = base.mark_point(filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=alt.Color(
            "layer:N",
            title=None,
            scale=alt.Scale(domain=["this layer", "other layers"], range=["--series-1", "--series-5"]),
        ),
        size=alt.Size("layer:N", legend=None, scale=alt.Scale(domain=["this layer", "other layers"], range=[140, 25])),
        tooltip=[
            alt.Tooltip("features:Q", title="features per class", format=".1f"),
            alt.Tooltip("accuracy:Q", title="accuracy", format=".1%"),
            alt.Tooltip("lambda:Q", title="lambda", format=".2g"),
        ],
    )
    return _specification(line + points, height=240)


def scatter(rows: Rows) -> dict[str, Any]:
    """Plot ALER - BER over the base error rate. Source: Singla et al., Barlow (CVPR 2021), Figs 8 and 15 to 20.

    The mark is the gain on held-out examples. A line connects it with a stroke at the gain in sample, on the examples
    that grew the tree, which is the one that the paper plots.
    """
    import altair as alt

    base = alt.X(
        "base:Q", title="base error rate", axis=alt.Axis(format="%", tickCount=6), scale=alt.Scale(domain=_reach(rows))
    )
    data = {"values": rows}
    optimism = alt.Chart(data).mark_rule(opacity=0.5).encode(x=base, y="gain:Q", y2="heldout:Q")
    in_sample = alt.Chart(data).mark_tick(thickness=2, size=12).encode(x=base, y="gain:Q")
    points = (
        alt.Chart(data)
        .mark_point(filled=True, opacity=0.85)
        .encode(
            x=base,
            y=alt.Y("heldout:Q", title="held-out ALER - BER", axis=alt.Axis(tickCount=6), scale=alt.Scale(padding=12)),
            shape=alt.Shape("kind:N", title=None, scale=alt.Scale(domain=_kinds(rows))),
            color=alt.Color(
                "pattern:N",
                title=None,
                scale=alt.Scale(domain=["pattern", "no pattern"], range=["--series-1", "--series-5"]),
            ),
            size=alt.Size("size:Q", legend=None, scale=alt.Scale(range=[40, 260])),
            tooltip=[
                alt.Tooltip("name:N", title="group"),
                alt.Tooltip("base:Q", title="base error rate", format=".1%"),
                alt.Tooltip("heldout:Q", title="held-out ALER - BER", format="+.2f"),
                alt.Tooltip("gain:Q", title="in sample", format="+.2f"),
                alt.Tooltip("size:Q", title="examples"),
                alt.Tooltip("pattern:N", title="verdict"),
            ],
        )
    )
    zero = alt.Chart({"values": [{"zero": 0}]}).mark_rule(strokeDash=[4, 4]).encode(y="zero:Q")
    return _specification(zero + optimism + in_sample + points, height=300)


def _reach(rows: Rows) -> list[float]:
    """Return the ends of the axis of base error rates: a little more than they take, and never outside of [0, 1]."""
    rates = [row["base"] for row in rows]
    return [max(min(rates) - 0.02, 0.0), min(max(rates) + 0.02, 1.0)]


def _kinds(rows: Rows) -> list[str]:
    """Return the kinds of groups in the legend: the default ones, and others that occur."""
    kinds = {row["kind"] for row in rows}
    return [f"{one.name} group" for one in ALL_GROUPINGS if one in GROUPINGS or f"{one.name} group" in kinds]


def curve(rows: Rows) -> dict[str, Any]:
    """Plot the accuracy among the K nearest images over K. Source: Jain et al. (ICLR 2023), Fig. 7b."""
    import altair as alt

    lines = (
        alt.Chart({"values": rows})
        .mark_line(point=True)
        .encode(
            x=alt.X("k:Q", title="K nearest images", axis=alt.Axis(tickCount=5, tickMinStep=1, format="d")),
            y=alt.Y(
                "accuracy:Q",
                title="accuracy",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", tickCount=3),
            ),
            color=alt.Color(
                "end:N", title="nearest to the caption that is", scale=alt.Scale(domain=["hardest", "easiest"])
            ),
            tooltip=[
                alt.Tooltip("end:N", title="caption"),
                alt.Tooltip("k:Q", title="K"),
                alt.Tooltip("accuracy:Q", format=".1%"),
            ],
        )
    )
    return _specification(lines, height=170)


def diary(rows: Rows) -> dict[str, Any]:
    """Plot the size of each failure mode over epochs; points show its status."""
    import altair as alt

    base = alt.Chart({"values": rows})
    x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False))
    y = alt.Y(
        "size:Q", title="flagged failures", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(domainMin=0)
    )
    lines = base.mark_line(strokeWidth=1.5, opacity=0.6).encode(x=x, y=y, detail="mode:N")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=x,
        y=y,
        color=alt.Color("status:N", title=None, scale=alt.Scale(domain=list(STATUSES), range=list(STATUSES.values()))),
        shape=alt.Shape("status:N", title=None, scale=alt.Scale(domain=list(STATUSES))),
        tooltip=[
            alt.Tooltip("mode:N", title="mode"),
            alt.Tooltip("epoch:Q", title="epoch"),
            alt.Tooltip("size:Q", title="flagged failures"),
            alt.Tooltip("status:N", title="status"),
        ],
    )
    return _specification(lines + points, height=300)


def _specification(chart: Any, *, height: int) -> dict[str, Any]:
    """Return the specification of a chart as wide as its container, without a theme: the page has its own."""
    import altair as alt

    with alt.data_transformers.enable(consolidate_datasets=False):  # the data stay in their layer
        spec: dict[str, Any] = chart.properties(width="container", height=height).to_dict(validate=False)
    spec.pop("config", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


CHARTS: dict[str, Chart] = {
    "scatter": Chart(
        section="trees",
        title="All groups: error rate, and how well a tree separates the failures",
        description="Each mark is a group. Groups to the right fail more often; in groups higher up, the tree"
        " separates failures of held-out examples better. A line leads from each mark to a stroke, the result in"
        " sample, which is optimistic. Larger marks are larger groups.",
        rows=lambda report, history: scatter_rows(report),
        draw=scatter,
    ),
    "sparsity": Chart(
        section="sparse",
        title="Accuracy against sparsity",
        description="Each mark is a layer of the path: the features that a class uses on average, and the accuracy on"
        " held-out examples. The large mark is the layer that this section examines.",
        rows=lambda report, history: sparsity_rows(report),
        draw=sparsity,
    ),
    "diary": Chart(
        section="diary",
        title="Size of the failure modes over epochs",
        description="Each line is a failure mode: its number of flagged failures. Marks show its status. The table has"
        " the numbers.",
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
