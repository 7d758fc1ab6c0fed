"""The frozen records of a report: what one analysis found, in the form of ``report.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from lightning_failures.core.serialization import from_jsonable, read_json, to_jsonable
from lightning_failures.errors import DataError

SCHEMA = 1
"""Version of ``report.json``. It grows when a key changes its meaning, not when one is added."""


class _Readable:
    """Lets a record be read by key as ``report.json`` is: ``report["classes"][0]["cv_score"]``."""

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values only; undefined numbers are None."""
        plain: dict[str, Any] = to_jsonable(self)
        return plain

    def __getitem__(self, key: str) -> Any:
        return self.to_dict()[key]


@dataclass(frozen=True)
class LeafReport(_Readable):
    """One rule of a failure tree; rates are in [0, 1].

    ``interval`` is the 95 % Wilson interval of the error rate on folds that did not grow the leaf.
    """

    rule: str
    size: int
    error_rate: float
    error_coverage: float
    importance: float
    valid: bool
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class NodeReport(_Readable):
    """One node of a failure tree, so that the tree can be drawn; the root comes first, parents before children.

    ``parent`` is a place in ``GroupReport.nodes``, and ``above`` tells the branch: the parent's feature is above its
    threshold. An inner node has a ``feature`` and a ``threshold``, a leaf its place in ``GroupReport.leaves``. Rates
    are in [0, 1]; ``interval`` is found as that of a leaf.
    """

    size: int
    failures: int
    error_rate: float | None = None
    error_coverage: float | None = None
    interval: tuple[float, float] | None = None
    parent: int | None = None
    above: bool | None = None
    feature: int | None = None
    threshold: float | None = None
    leaf: int | None = None


@dataclass(frozen=True)
class GroupReport(_Readable):
    """The failure tree of one label group (``grouping="label"``) or prediction group (``"prediction"``) of a class."""

    grouping: str
    class_name: str = field(metadata={"key": "class"})  # the name people expect, and a reserved word in Python
    size: int
    base_error_rate: float | None = None
    aler: float | None = None
    heldout_aler: float | None = None
    heldout_aler_minus_ber: float | None = None
    heldout_stderr: float | None = None
    pattern: bool = False
    skipped: str | None = None
    leaves: tuple[LeafReport, ...] = ()
    nodes: tuple[NodeReport, ...] = ()


@dataclass(frozen=True)
class ValueReport(_Readable):
    """How often the examples of a class have one value of an attribute: counts, and shares in [0, 1].

    ``least_confident`` are as many examples as were flagged, those of least confidence in the true class.
    ``share_of_flagged_interval`` is a 95 % interval; a share of nothing is None.
    """

    attribute: str
    value: str
    examples: int
    failures: int
    flagged: int | None = None
    least_confident: int | None = None
    share: float | None = None
    share_of_failures: float | None = None
    share_of_flagged: float | None = None
    share_of_flagged_interval: tuple[float, float] | None = None
    share_of_least_confident: float | None = None


@dataclass(frozen=True)
class FeatureReport(_Readable):
    """One feature of the robust encoder that rules mention.

    ``groups`` are those whose trees split on it, as "label/cat". ``caption`` is what tells its most activating images
    from the others of their group best, in CLIP space: a hypothesis. ``name``, ``tag`` ("spurious" or
    "overemphasised") and ``action`` are what people wrote down.
    """

    feature: int
    groups: tuple[str, ...] = ()
    top_ids: tuple[int, ...] = ()
    caption: str | None = None
    caption_score: float | None = None
    caption_margin: float | None = None
    name: str | None = None
    tag: str | None = None
    action: str | None = None


@dataclass(frozen=True)
class ModeReport(_Readable):
    """One failure mode in the diary: a direction that is followed from analysis to analysis.

    ``name`` is stable. ``status`` is "new" (seen fewer than three times in a row), "persisting", "growing",
    "shrinking", "missing" (not seen now, not yet three times in a row), "cured", or "returned" (was cured and is
    seen again, not yet three times in a row). Where its class was not looked at it is "missing" with ``missed`` 0.
    ``since`` is the epoch in which it was first seen, ``seen`` the number of analyses in which it was, ``missed``
    for how many in a row it was not. ``size`` counts its flagged failures now, of ``examples`` of its class;
    ``gained`` and ``lost`` are those that came and went among the examples that the last analysis has seen too.
    Where it is not seen, ``left`` counts how many of the failures that it had when it was last seen still fail.
    ``cosine`` and ``shared`` tell how alike it is to what it was matched with: of the directions, and the share of
    the smaller set of failures that both have.
    """

    name: str
    class_name: str = field(metadata={"key": "class"})
    status: str
    since: int | None = None
    seen: int = 1
    missed: int = 0
    size: int = 0
    examples: int = 0
    gained: int | None = None
    lost: int | None = None
    left: int | None = None
    cosine: float | None = None
    shared: float | None = None
    caption: str | None = None


@dataclass(frozen=True)
class CurvePoint(_Readable):
    """Accuracy among the ``k`` examples of a class that are nearest to its hardest, and to its easiest caption.

    Source: Jain et al. (ICLR 2023), figure 7b.
    """

    k: int
    hardest: float | None = None
    easiest: float | None = None


@dataclass(frozen=True)
class ClassReport(_Readable):
    """What is known about the failures of one class.

    ``pattern`` says whether the screening p-value survives Benjamini-Hochberg over classes at level 0.05; without
    it the captions describe noise. ``hardest_ids`` and ``easiest_ids`` start with the most extreme decision value;
    ``hardest_values`` and ``easiest_values`` are these. ``least_confident_ids`` start with the least confidence in the
    true class, which ``least_confident_values`` tell. A margin of a caption is how far its score lies beyond the mean
    of all candidates, in their standard deviations. ``cv_null_mean`` and ``cv_null_interval`` tell which CV scores
    ``cv_null_permutations`` permutations of correctness give. ``agreement`` is Cohen's kappa between being flagged and
    being in the most important leaf of the label group's tree. Directions and trees may look at a sample only:
    ``looked_at`` of the ``examples``, ``failures_looked_at`` of which are failures; ``flagged`` is of these.
    """

    name: str
    examples: int
    accuracy: float | None = None
    cv_score: float | None = None
    cv_score_stderr: float | None = None
    p_value: float | None = None
    pattern: bool = False
    c: float | None = None
    skipped: str | None = None
    flagged: int | None = None
    aler: float | None = None
    base_error_rate: float | None = None
    reference_caption: str | None = None
    hardest_captions: tuple[str, ...] = ()
    hardest_caption_scores: tuple[float, ...] = ()
    easiest_captions: tuple[str, ...] = ()
    easiest_caption_scores: tuple[float, ...] = ()
    caption_p_value: float | None = None
    hardest_caption_margins: tuple[float, ...] = ()
    easiest_caption_margins: tuple[float, ...] = ()
    nearest: tuple[CurvePoint, ...] = ()
    cv_null_mean: float | None = None
    cv_null_interval: tuple[float, float] | None = None
    cv_null_permutations: int = 0
    agreement: float | None = None
    hardest_ids: tuple[int, ...] = ()
    easiest_ids: tuple[int, ...] = ()
    hardest_values: tuple[float, ...] = ()
    easiest_values: tuple[float, ...] = ()
    least_confident_ids: tuple[int, ...] = ()
    least_confident_values: tuple[float, ...] = ()
    enrichment: tuple[ValueReport, ...] = ()
    truth: dict[str, str] | None = None
    looked_at: int | None = None
    failures_looked_at: int | None = None


@dataclass(frozen=True)
class FailureReport(_Readable):
    """The findings of one analysis; ``report.json`` is its JSON form.

    ``summary`` holds the aggregate scalars under the names in which they are logged, without the ``failures/``
    prefix. ``sampled`` is the share of the examples that directions and trees have looked at. ``timings`` are seconds
    by step of the analysis; ``stage`` is "fit", "validate" or "test".
    ``methods`` holds the sections of additional methods by name; ``columns`` in it are columns of the table of classes.
    ``features`` are those that rules mention and pictures show, ``modes`` the diary.
    """

    examples: int
    accuracy: float | None
    classes: tuple[ClassReport, ...]
    groups: tuple[GroupReport, ...] = ()
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    features: tuple[FeatureReport, ...] = ()
    modes: tuple[ModeReport, ...] = ()
    summary: dict[str, float] = field(default_factory=dict)
    interventions: tuple[dict[str, Any], ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    epoch: int | None = None
    global_step: int | None = None
    stage: str | None = None
    dataloader: int = 0
    coverage: float = 1.0
    sampled: float = 1.0
    reference: str | None = None
    encoder: str | None = None
    robust_encoder: str | None = None
    encoder_fingerprint: str | None = None
    robust_encoder_fingerprint: str | None = None
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    def method_columns(self) -> dict[str, tuple[Any, ...]]:
        """Return the columns of additional methods for the table of classes: K values by title.

        >>> classes = (ClassReport("cat", 2), ClassReport("dog", 2))
        >>> FailureReport(4, None, classes, methods={"age": {"columns": {"mean age": [3, None]}}}).method_columns()
        {'mean age': (3, None)}
        """
        columns: dict[str, tuple[Any, ...]] = {}
        for section in self.methods.values():
            of_section = section.get("columns")
            for title, values in of_section.items() if isinstance(of_section, dict) else ():
                if isinstance(values, list | tuple) and len(values) == len(self.classes):
                    columns[str(title)] = tuple(values)
        return columns

    def to_json(self) -> str:
        """The text of ``report.json``."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FailureReport:
        """Read what :meth:`to_dict` wrote. Keys of later versions are ignored.

        Raises:
            DataError: Another form, or a later schema, in which a key means something else.

        >>> report = FailureReport(examples=2, accuracy=0.5, classes=(ClassReport("cat", 2, accuracy=0.5),))
        >>> FailureReport.from_dict(report.to_dict() | {"of a later version": 1}) == report
        True
        """
        report = from_jsonable(cls, data)
        if report.schema > SCHEMA:
            raise DataError(f"the report has schema {report.schema}, of a later version; this one reads {SCHEMA}")
        return report

    @classmethod
    def from_json(cls, text: str | bytes) -> FailureReport:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: No JSON, or as :meth:`from_dict`.
        """
        return cls.from_dict(read_json(text))


def analysis_name(report: FailureReport, step: int) -> str:
    """The name of the folder of one analysis, inside that of its run.

    >>> analysis_name(FailureReport(0, None, (), epoch=3), 250)
    'epoch=0003-step=000250'
    >>> analysis_name(FailureReport(0, None, (), epoch=3, stage="test"), 250)
    'test-epoch=0003-step=000250'
    """
    name = f"epoch={report.epoch or 0:04d}-step={step:06d}"
    return f"test-{name}" if report.stage == "test" else name
