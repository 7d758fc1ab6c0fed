"""The findings of a run as flat records, for files that other tools read: examples, labels to check, slices, pins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from lightning_failures.data.digests import UNKNOWN_DIGEST
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.records import Readable
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.errors import DataError
from lightning_failures.regression.pin import Pin
from lightning_failures.report.example_rows import ExampleRow, rows_at
from lightning_failures.report.feature_names import names_in, with_names
from lightning_failures.report.run_folder import Run


@dataclass(frozen=True)
class FoundExample(Readable):
    """One graded example.

    Attributes:
        id: Its id: the index in the dataset, unless the batches named their examples.
        label: Name of its class.
        prediction: Name of the predicted class; "right" or "wrong" in a task without predicted classes.
        failed: Whether the model is wrong.
        flagged: Whether the direction of its class predicts a failure; None without a direction.
        suspect: Whether its label should be checked.
        pattern: Whether the failures of its class have a pattern: without one, flags are noise.
        confidence: Predicted probability of the label, in [0, 1]; None if it is not known.
        decision_value: Decision value by the direction of its class, negative if flagged; None without a direction.
        caption: Hardest caption of its class, for flagged examples of a class with a pattern.
        leaf: Rule that it follows in the failure tree of its class, if that tree has a pattern.
        pins: Names of the pinned slices that hold its image.
        digest: Digest of its image, 16 hexadecimal digits; None if it is not known.
        path: Its file; None if it was not found.
    """

    id: int
    label: str
    prediction: str
    failed: bool
    flagged: bool | None = None
    suspect: bool = False
    pattern: bool = False
    confidence: float | None = None
    decision_value: float | None = None
    caption: str | None = None
    leaf: str | None = None
    pins: tuple[str, ...] = ()
    digest: str | None = None
    path: str | None = None

    @property
    def tags(self) -> list[str]:
        """What is remarkable about the example: "failed", "flagged", "suspect"."""
        return [name for name in ("failed", "flagged", "suspect") if getattr(self, name)]


@dataclass(frozen=True)
class SuspectLabel(Readable):
    """One example whose label a person should check, the most doubtful of each origin first.

    Attributes:
        id: Index in its dataset.
        part: "train" for training examples, which interventions left out; else "evaluated".
        label: Name of its class.
        suggested: Class that the evidence speaks for; the prediction of the model if nothing else is known.
        reason: What the suspicion rests on.
        score: Probability or margin of the label, low for doubtful ones; None if it is not stored.
        path: Its file; None if it was not found.
    """

    id: int
    part: str
    label: str
    suggested: str | None
    reason: str
    score: float | None = None
    path: str | None = None


@dataclass(frozen=True)
class FoundSlice(Readable):
    """A set of examples with its error rate; rates are in [0, 1].

    Attributes:
        kind: "attribute" (one value of a known attribute), "direction" (the flagged examples of a class) or "leaf" (a
            rule of a failure tree).
        class_name: Class of the examples; its key is "class". None: all classes.
        name: The value, the hardest caption or the rule.
        examples: Number of examples.
        error_rate: Share of them that failed, held out where that is known.
        error_rate_outside: Share of the others that failed: of the class, or of the group of the tree.
        significant: Whether it fails more often than the others beyond chance, by the test of its kind.
        p_value: Its p-value, not corrected; None for leaves.
        low: Lower end of the 95 % interval of ``error_rate``.
        high: Upper end of this interval.
    """

    kind: str
    class_name: str | None = field(metadata={"key": "class"})  # "class" is a reserved word in Python
    name: str
    examples: int | None = None
    error_rate: float | None = None
    error_rate_outside: float | None = None
    significant: bool = False
    p_value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Findings:
    """The findings of one analysis.

    Attributes:
        examples: Failed, flagged and suspect examples, or all of them, by id.
        suspects: Labels to check.
        slices: The slices that fail most are first, within each kind.
        pins: Checks of pinned slices, with the keys of report.json.
        class_names: Names of all classes.
    """

    examples: tuple[FoundExample, ...]
    suspects: tuple[SuspectLabel, ...]
    slices: tuple[FoundSlice, ...]
    pins: tuple[dict[str, Any], ...]
    class_names: tuple[str, ...]


def find(
    run: Run, *, every_example: bool = False, pins: Sequence[Pin] = (), paths: Mapping[int, str] | None = None
) -> Findings:
    """Return the findings of the last analysis of a run.

    Args:
        run: The run.
        every_example: Return all graded examples, not only those that failed, are flagged or have a suspect label.
        pins: Pinned slices; their images are found by digest.
        paths: File of each example by hash of its name
            (:func:`~lightning_failures.data.digests.file_name_hash`); None: not known.

    Raises:
        DataError: The run has no table of examples.
    """
    table, report = run.table, run.report
    if table is None:
        raise DataError(
            f"{run.folder} holds no readable table of examples (examples.safetensors), so there is nothing to export."
            " Name the folder of a whole run, or analyse the checkpoint again: lightning-failures analyse."
        )
    files = _files(table, paths or {})
    examples = _examples(report, table, files, pins, every_example)
    return Findings(
        tuple(examples),
        tuple(_suspects(report, examples)),
        tuple(_slices(report)),
        tuple(_pins(report, pins)),
        tuple(entry.name for entry in report.classes) or table.class_names,
    )


def _files(table: ExampleTable, paths: Mapping[int, str]) -> list[str | None]:
    """Return the file of each row of the table."""
    if table.names is None or not paths:
        return [None] * len(table)
    return [paths.get(name) for name in table.names.tolist()]


def _examples(
    report: FailureReport, table: ExampleTable, files: list[str | None], pins: Sequence[Pin], every_example: bool
) -> list[FoundExample]:
    classes = {entry.name: entry for entry in report.classes}
    doubted = torch.zeros(len(table), dtype=torch.bool)
    for entry in report.classes:
        if entry.doubted_ids and entry.name in table.class_names:
            of_class = table.labels == table.class_names.index(entry.name)
            doubted |= of_class & torch.isin(table.ids, torch.tensor(entry.doubted_ids))
    wanted = torch.ones(len(table), dtype=torch.bool) if every_example else table.failed | table.flagged | doubted
    rows = torch.nonzero(wanted).flatten().tolist()
    digests = [UNKNOWN_DIGEST] * len(table) if table.digests is None else table.digests.tolist()
    pinned = [(pin, set(pin.digests.tolist())) for pin in pins]
    found = []
    for row, known in zip(rows, rows_at(report, table, rows), strict=True):
        entry = classes.get(known.label, ClassReport(known.label, 0))
        names = tuple(pin.name for pin, members in pinned if pin.class_name == known.label and digests[row] in members)
        found.append(_example(known, entry, bool(doubted[row]), names, digests[row], files[row]))
    return found


def _example(
    known: ExampleRow, entry: ClassReport, doubted: bool, pins: tuple[str, ...], digest: int, path: str | None
) -> FoundExample:
    describes = bool(known.flagged and entry.pattern and entry.hardest_captions)
    return FoundExample(
        id=known.id,
        label=known.label,
        prediction=known.prediction,
        failed=not known.right,
        flagged=known.flagged,
        suspect=doubted,
        pattern=entry.pattern,
        confidence=known.confidence,
        decision_value=known.decision_value,
        caption=entry.hardest_captions[0] if describes else None,
        leaf=known.leaf,
        pins=pins,
        digest=None if digest == UNKNOWN_DIGEST else f"{digest:016x}",
        path=path,
    )


def _suspects(report: FailureReport, examples: Iterable[FoundExample]) -> list[SuspectLabel]:
    """Return the labels to check: doubted failures of the analysis, then what interventions left out of training."""
    known = {(example.id, example.label): example for example in examples if example.suspect}
    keys = [(one, entry.name) for entry in report.classes for one in entry.doubted_ids]
    suspects = []
    for example in (known[key] for key in keys if key in known):
        reason = "a probe of the embeddings does not support the label"
        suspects.append(
            SuspectLabel(example.id, "evaluated", example.label, example.prediction, reason, path=example.path)
        )
    reviewed = chain.from_iterable(entry.get("review") or () for entry in report.interventions)
    training = {int(entry["id"]): _reviewed(entry) for entry in reviewed}  # each once, whoever left it out
    return suspects + list(training.values())


def _reviewed(entry: Mapping[str, Any]) -> SuspectLabel:
    if "neighbours_agreeing" in entry:
        reason = f"the model and {entry['neighbours_agreeing']} of 10 nearest neighbours disagree with the label"
        return SuspectLabel(
            int(entry["id"]),
            "train",
            str(entry["class"]),
            entry.get("predicted"),
            reason,
            entry.get("probability_of_label"),
        )
    reason = "a probe of the embeddings does not support the label"
    return SuspectLabel(
        int(entry["id"]), "train", str(entry["class"]), entry.get("supported"), reason, entry.get("label_margin")
    )


def _slices(report: FailureReport) -> list[FoundSlice]:
    """Return slices by attribute, by direction and by rule."""
    by_attribute = chain(report.slices, *(entry.slices for entry in report.classes))
    found = [
        FoundSlice(
            "attribute",
            row.class_name,
            f"{row.attribute} = {row.value}",
            row.examples,
            row.error_rate,
            row.error_rate_outside,
            row.significant,
            row.p_value,
            *(row.interval or (None, None)),
        )
        for row in by_attribute
    ]
    for entry in sorted(report.classes, key=lambda entry: entry.rank):
        if entry.flagged is not None:
            caption = entry.hardest_captions[0] if entry.pattern and entry.hardest_captions else "flagged"
            rates = entry.flagged_error_rate, entry.unflagged_error_rate
            found.append(
                FoundSlice("direction", entry.name, caption, entry.flagged, *rates, entry.pattern, entry.p_value)
            )
    names = names_in(report.features)
    for group in report.groups:
        where = group.class_name if group.grouping in ("label", "prediction") else None
        prefix = "" if group.grouping == "label" else f"{group.grouping} {group.class_name}: "
        for leaf in group.leaves:
            rate = leaf.error_rate if leaf.heldout_error_rate is None else leaf.heldout_error_rate
            found.append(
                FoundSlice(
                    "leaf",
                    where,
                    prefix + with_names(leaf.rule, names),
                    leaf.size,
                    rate,
                    group.base_error_rate,
                    group.pattern and leaf.shown_as_valid,
                    None,
                    *(leaf.interval or (None, None)),
                )
            )
    return found


def _pins(report: FailureReport, pins: Sequence[Pin]) -> list[dict[str, Any]]:
    """Return the checks of the report, and what is known of pins that it has not checked."""
    checked = {(check.name, check.class_name): check.to_dict() for check in report.pins}
    for pin in pins:
        if (pin.name, pin.class_name) not in checked:
            examples, failures, _ = pin.slice
            checked[pin.name, pin.class_name] = {
                "name": pin.name,
                "class": pin.class_name,
                "status": "not checked in this run",
                "examples": examples,
                "failures": failures,
                "error_rate": pin.slice.rate,
                "level": pin.level.rate,
                "level_of": pin.level_of,
                "caption": pin.caption,
            }
    return list(checked.values())
