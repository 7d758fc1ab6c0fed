"""Pinned slices for readers: pin a slice of a run, and the checks of pins as a table in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_failures.analysis.diary import Mode
from lightning_failures.core.arrays import as_array, unit_vectors
from lightning_failures.core.text import clean, p_text, percent
from lightning_failures.core.types import BoolArray
from lightning_failures.data.digests import UNKNOWN_DIGEST
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.pin_check import PinCheck
from lightning_failures.data.report import ClassReport, analysis_name
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.errors import ConfigurationError, DataError, did_you_mean
from lightning_failures.regression.pin import Pin, PinnedDirection
from lightning_failures.report.diary_storage import MODES_FILE, load_diary
from lightning_failures.report.run_folder import Run
from lightning_failures.report.text_tables import aligned_table
from lightning_failures.stats.rates import exact_p_values, rate_of
from lightning_failures.trees.growing import NodeSplit

OPEN_LEVEL = 0.05
"""A slice is open if the p-value against the other images of its class is at most this."""

_LEAF = "leaf "
_ALL_AT_ONCE = 200  # characters of a name in a message


@dataclass(frozen=True, eq=False)
class _Slice:
    """A slice that can be pinned.

    Attributes:
        name: Name of the pin.
        rows: (N,) bool, its rows in the table of examples.
        direction: Its direction, or None.
        rule: Its rule, or nothing.
        what: What it is, in words.
        caption: Its caption.
    """

    name: str
    rows: BoolArray
    what: str
    direction: PinnedDirection | None = None
    rule: tuple[NodeSplit, ...] = ()
    caption: str | None = None


def pin_slice(run: Run, class_name: str, mode: str | None = None, *, accept: bool = False) -> Pin:
    """Return a pin of a slice of a run.

    Args:
        run: The run.
        class_name: Class of the slice.
        mode: Name of a failure mode of the diary, such as "nine 1", which may be cured by now: then the slice is that
            of its last detection, with its error rate in the last analysis. Or "leaf 2": the second leaf of the failure
            tree of the class, in the order of the report. None: the flagged examples of the class.
        accept: Keep the slice at its present error rate, although it fails more often than the rest of its class.

    Raises:
        ConfigurationError: The class or the mode does not exist, or the slice is empty.
        DataError: The run lacks what a pin needs, with the remedy.
    """
    report, table = run.report, run.table
    names = [entry.name for entry in report.classes]
    if class_name not in names:
        known = ", ".join(clean(name, 30) for name in names[:8])
        raise ConfigurationError(
            f"The run has no class {clean(class_name, _ALL_AT_ONCE)!r} (classes: {known}"
            f"{', ...' if len(names) > 8 else ''}).{did_you_mean(class_name, names)}"
        )
    if table is None or table.digests is None:
        raise DataError(
            f"{run.folder} has no table of examples with digests of the images, without which they cannot be found"
            " again. Analyse the model with this version: lightning-failures analyse --config ... --ckpt_path ..."
        )
    k = names.index(class_name)
    if mode is None:
        found = _flagged(run, table, k)
    elif mode.startswith(_LEAF):
        found = _leaf(run, table, k, mode)
    else:
        found = _mode(run, table, k, mode)
    return _pinned(run, table, k, found, accept=accept)


def _flagged(run: Run, table: ExampleTable, k: int) -> _Slice:
    """Return the examples of a class that its direction flags."""
    entry, directions = run.report.classes[k], run.directions
    row = [] if directions is None else (directions.classes == k).nonzero().flatten().tolist()
    if directions is None or not row:
        reason = entry.skipped or "the run has no directions"
        raise DataError(
            f"The class {clean(entry.name, 60)} has no failure direction: {reason}.{_modes_of(run, entry.name)}"
        )
    weight = directions.weight[row[0]].double()
    length = max(float(weight.norm()), 1e-30)
    direction = PinnedDirection(
        (weight / length).float(), directions.mean, directions.std, -float(directions.bias[row[0]]) / length
    )
    rows = (as_array(table.labels) == k) & (as_array(table.values) < 0)
    return _Slice(entry.name, rows, f"the flagged images of {entry.name}", direction, caption=_caption(entry))


def _mode(run: Run, table: ExampleTable, k: int, name: str) -> _Slice:
    """Return the examples that a failure mode of the diary flagged when it was last detected."""
    report = run.report
    path = run.folder / analysis_name(report, report.global_step or 0) / MODES_FILE
    modes: list[Mode] = []
    if path.is_file():
        modes = [mode for mode in load_diary(path).modes if mode.class_index == k]
    mode = next((one for one in modes if one.name == name), None)
    if mode is None:
        known = ", ".join(clean(one.name, 60) for one in modes) or "none"
        raise ConfigurationError(
            f"{clean(report.classes[k].name, 60)} has no failure mode {clean(name, _ALL_AT_ONCE)!r} (modes of the"
            f" diary: {known}; leaves of its tree: 'leaf 1', ...).{did_you_mean(name, [one.name for one in modes])}"
        )
    if mode.threshold is None or mode.snapshot.digests is None or run.directions is None:
        raise DataError(
            f"The diary of {run.folder} was written by a former version, or the last analysis has no directions: what"
            f" tells new images of {clean(name, 60)} is missing. Train with this version, or pin without --mode."
        )
    weight = torch.from_numpy(unit_vectors(mode.direction.astype(np.float32)[None])[0])
    # phi of the last analysis: the encoder is frozen, so its moments change only with the validation set
    direction = PinnedDirection(weight, run.directions.mean, run.directions.std, mode.threshold)
    assert table.digests is not None
    flagged = mode.snapshot.digests[mode.snapshot.flagged]
    rows = (as_array(table.labels) == k) & np.isin(as_array(table.digests), flagged[flagged != UNKNOWN_DIGEST])
    return _Slice(mode.name, rows, f"the images of the failure mode {mode.name}", direction, caption=mode.caption)


def _leaf(run: Run, table: ExampleTable, k: int, name: str) -> _Slice:
    """Return the examples of one leaf of the failure tree of a class."""
    class_name, number = run.report.classes[k].name, name.removeprefix(_LEAF)
    tree = next((one for one in run.report.groups if (one.grouping, one.class_name) == ("label", class_name)), None)
    if tree is None or len(tree.leaves) < 2:
        raise DataError(f"The class {clean(class_name, 60)} has no failure tree with leaves in {run.folder}.")
    if not number.isdecimal() or not 1 <= int(number) <= len(tree.leaves):
        raise ConfigurationError(
            f"The tree of {clean(class_name, 60)} has the leaves 'leaf 1' ... 'leaf {len(tree.leaves)}', got"
            f" {clean(name, _ALL_AT_ONCE)!r}."
        )
    leaf = int(number) - 1
    rows = (as_array(table.labels) == k) & (as_array(table.label_leaf) == leaf)
    what = f"the images of {class_name} with {tree.leaves[leaf].rule}"
    return _Slice(f"{class_name}, {_LEAF}{leaf + 1}", rows, what, rule=_conditions(tree, leaf))


def _conditions(tree: GroupReport, leaf: int) -> tuple[NodeSplit, ...]:
    """Return the conditions from the root of a tree to a leaf."""
    node = next(node for node in tree.nodes if node.leaf == leaf)
    splits: list[NodeSplit] = []
    while node.parent is not None:
        parent = tree.nodes[node.parent]
        if parent.feature is None or parent.threshold is None or node.above is None:
            raise DataError(f"The tree of {clean(tree.class_name, 60)} in the report is damaged.")
        splits.append(NodeSplit(parent.feature, parent.threshold, node.above))
        node = parent
    return tuple(reversed(splits))


def _pinned(run: Run, table: ExampleTable, k: int, found: _Slice, *, accept: bool) -> Pin:
    """Return the pin of a slice; of several copies of one image only one counts."""
    report, entry = run.report, run.report.classes[k]
    encoder, fingerprint = report.encoder, report.encoder_fingerprint
    if found.rule:
        encoder, fingerprint = report.robust_encoder, report.robust_encoder_fingerprint
    assert table.digests is not None
    digests = as_array(table.digests)
    known = np.flatnonzero((as_array(table.labels) == k) & (digests != UNKNOWN_DIGEST))
    rows = known[np.sort(np.unique(digests[known], return_index=True)[1])]
    inside = found.rows[rows]
    if not inside.any():
        raise ConfigurationError(
            f"The slice {clean(found.name, 60)} is empty: none of {len(rows)} images of {clean(entry.name, 60)} is in"
            f" it.{_modes_of(run, entry.name)}"
        )
    if fingerprint is None:
        raise DataError(f"{run.folder} does not say which encoder it used. Analyse the model with this version.")
    failed = as_array(table.failed)[rows]
    sources = None if table.groups is None else as_array(table.groups)[rows]
    of_slice = rate_of(failed, inside, sources)
    rest = rate_of(failed, ~inside, sources) if not inside.all() else None
    is_open = rest is not None and exact_p_values([(of_slice, rest)])[0] <= OPEN_LEVEL
    level_of: Literal["slice", "rest"] = "rest" if is_open and not accept else "slice"

    def column(values: Tensor, mask: BoolArray) -> Tensor:
        return torch.from_numpy(as_array(values)[rows[mask]])

    pin = Pin(
        name=found.name,
        class_name=entry.name,
        encoder=fingerprint,
        encoder_name=encoder or "",
        ids=column(table.ids, inside),
        digests=column(table.digests, inside),
        known=column(table.digests, ~inside),
        slice=of_slice,
        rest=rest,
        level_of=level_of,
        direction=found.direction,
        rule=found.rule,
        caption=found.caption,
        run=str(run.folder),
        epoch=report.epoch,
    )
    return replace(pin, words=_words(pin, found.what))


def _words(pin: Pin, what: str) -> str:
    caption = f' ("{clean(pin.caption, 80)}")' if pin.caption else ""
    rate = f"{pin.slice.failures} of {pin.slice.examples} fail ({percent(pin.slice.rate)})"
    rest = "" if pin.rest is None else f", of the other images of the class {percent(pin.rest.rate)}"
    if pin.level_of == "rest":
        state = "It is open: checks fail until it fails no more often than the rest of its class."
    else:
        state = "Checks fail if it fails more often than that again."
    return f"{clean(what, 200)}{caption}: {rate}{rest}. {state}"


def _caption(entry: ClassReport) -> str | None:
    return entry.hardest_captions[0] if entry.hardest_captions else None


def _modes_of(run: Run, class_name: str) -> str:
    """Return a sentence with the failure modes of a class in the reports of the run, which can be pinned too."""
    modes = {mode.name for report in run.history for mode in report.modes if mode.class_name == class_name}
    return f" Pin one of its failure modes: --mode {' | '.join(map(repr, sorted(modes)))}." if modes else ""


def check_json(checks: Sequence[PinCheck]) -> str:
    """Return the checks of pins as JSON.

    >>> check_json([])
    '{"schema": 1, "holds": false, "pins": []}'
    """
    holds = bool(checks) and all(check.holds for check in checks)
    pins = [check.to_dict() | {"sentence": check.sentence} for check in checks]
    return json.dumps({"schema": 1, "holds": holds, "pins": pins}, indent=2 if pins else None, allow_nan=False)


def pin_lines(checks: Sequence[PinCheck]) -> list[str]:
    """Return one sentence for each check.

    >>> pin_lines([PinCheck("cat 1", "cat", "not checked", note="no images.")])
    ['cat 1 could not be checked: no images.']
    """
    return [check.sentence for check in checks]


def pin_table(checks: Sequence[PinCheck]) -> str:
    """Return the checks of pins as an aligned table, with a sentence for each that does not hold.

    >>> print(pin_table([PinCheck("cat 1", "cat", "holds", 40, 4, 0.1, (0.04, 0.23), 38, 2, 1, 0, 0.05, 0.125)]))
    pin    images  new  gone  error rate  allowed  rest now  p-value  outcome
    cat 1      40    2     1      10.0 %   12.5 %     5.0 %        -  holds
    """
    head = ("pin", "images", "new", "gone", "error rate", "allowed", "rest now", "p-value", "outcome")
    rows = [
        (
            clean(check.name, 30),
            str(check.examples),
            str(check.new),
            str(check.gone),
            percent(check.error_rate),
            percent(check.level),
            percent(check.rest_error_rate),
            p_text(check.adjusted_p_value, ""),
            check.status,
        )
        for check in checks
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    table = aligned_table([head, *rows], widths, "lrrrrrrrl")
    sentences = [check.sentence for check in checks if not check.holds]
    return "\n\n".join([table, *sentences])
