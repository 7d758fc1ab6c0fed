"""The charts of the page: what altair makes of a report, as plain Vega-Lite. Colours come from the page's theme.

Each function returns a specification whose data are the numbers of ``report.json``, unrounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_failures.core.text import clean
from lightning_failures.data.report import ClassReport, FailureReport

STATUSES = {
    "new": "--series-3",
    "growing": "--series-1",
    "persisting": "--series-4",
    "shrinking": "--series-2",
    "missing": "--series-5",
    "cured": "--series-6",
    "returned": "--series-7",
}
"""What can be told of a mode, and its colour in the theme."""

DIARY_MODES = 12
"""How many modes the chart of the diary follows: those that were largest."""


def scatter_rows(report: FailureReport) -> list[dict[str, Any]]:
    """One row for each group whose tree was judged."""
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


def curve_rows(entry: ClassReport) -> list[dict[str, Any]]:
    """Two rows for each point of the curve of a class."""
    ends = ("hardest", "easiest")
    return [
        {"k": point.k, "end": end, "accuracy": getattr(point, end)}
        for end in ends
        for point in entry.nearest
        if getattr(point, end) is not None
    ]


def diary_rows(history: Sequence[FailureReport], limit: int = DIARY_MODES) -> list[dict[str, Any]]:
    """One row for each mode and analysis, of the modes that were largest."""
    largest: dict[str, int] = {}
    for report in history:
        for mode in report.modes:
            largest[mode.name] = max(largest.get(mode.name, 0), mode.size)
    kept = set(sorted(largest, key=lambda name: -largest[name])[:limit])
    return [
        {
            "analysis": analysis,
            "place": place,
            "mode": clean(mode.name, 60),
            "epoch": report.epoch if report.epoch is not None else analysis,
            "size": mode.size,
            "status": mode.status,
        }
        for analysis, report in enumerate(history)
        for place, mode in enumerate(report.modes)
        if mode.name in kept
    ]


def scatter(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Base error rate against ALER - BER. Source: Singla et al., Barlow (CVPR 2021), Figs 8 and 15 to 20.

    The mark is the paper's gain, on the examples that grew the tree. A line goes from it down to a stroke, the gain on
    examples that did not: that is what counts.
    """
    import altair as alt

    base = alt.X("base:Q", title="base error rate", axis=alt.Axis(format="%", tickCount=6), scale=alt.Scale(padding=12))
    data = {"values": rows}
    optimism = alt.Chart(data).mark_rule(opacity=0.5).encode(x=base, y="gain:Q", y2="heldout:Q")
    heldout = alt.Chart(data).mark_tick(thickness=2, size=12).encode(x=base, y="heldout:Q")
    points = (
        alt.Chart(data)
        .mark_point(filled=True, opacity=0.85)
        .encode(
            x=base,
            y=alt.Y("gain:Q", title="ALER - BER", axis=alt.Axis(tickCount=6), scale=alt.Scale(padding=12)),
            shape=alt.Shape("kind:N", title=None, scale=alt.Scale(domain=["label group", "prediction group"])),
            color=alt.Color(
                "pattern:N",
                title=None,
                scale=alt.Scale(domain=["pattern", "no pattern"], range=["--series-1", "--series-5"]),
            ),
            size=alt.Size("size:Q", legend=None, scale=alt.Scale(range=[40, 260])),
            tooltip=[
                alt.Tooltip("name:N", title="group"),
                alt.Tooltip("base:Q", title="base error rate", format=".1%"),
                alt.Tooltip("gain:Q", title="ALER - BER", format="+.2f"),
                alt.Tooltip("heldout:Q", title="held out", format="+.2f"),
                alt.Tooltip("size:Q", title="examples"),
                alt.Tooltip("pattern:N", title="verdict"),
            ],
        )
    )
    zero = alt.Chart({"values": [{"zero": 0}]}).mark_rule(strokeDash=[4, 4]).encode(y="zero:Q")
    return _plain(zero + optimism + heldout + points, height=300)


def curve(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy among the K nearest images. Source: Jain et al. (ICLR 2023), Fig. 7b."""
    import altair as alt

    lines = (
        alt.Chart({"values": rows})
        .mark_line(point=True)
        .encode(
            x=alt.X("k:Q", title="K nearest images", axis=alt.Axis(tickCount=5)),
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
    return _plain(lines, height=170)


def diary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The size of each failure mode over epochs; points tell its status."""
    import altair as alt

    base = alt.Chart({"values": rows})
    x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False))
    y = alt.Y("size:Q", title="flagged failures")
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
    return _plain(lines + points, height=300)


def _plain(chart: Any, *, height: int) -> dict[str, Any]:
    """As wide as its place; the theme, also the background, is the page's."""
    import altair as alt

    with alt.data_transformers.enable(consolidate_datasets=False):  # data stay where they are used
        spec: dict[str, Any] = chart.properties(width="container", height=height).to_dict(validate=False)
    spec.pop("config", None)
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec
