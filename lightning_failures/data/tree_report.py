"""The records of a failure tree in a report: its group, its leaves and its nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_failures.data.records import Readable


@dataclass(frozen=True)
class LeafReport(Readable):
    """One leaf of a failure tree; rates are in [0, 1].

    Numbers in sample come from the examples that grew the tree, and are optimistic. Numbers held out come from folds
    that the leaf was not grown on; they are None if nothing could be held out, and in reports of former versions.

    Attributes:
        rule: The conditions on features that lead to the leaf, as text.
        size: Number of examples in the leaf.
        error_rate: Share of the leaf's examples that failed, in sample.
        error_coverage: Share of the group's failures that are in the leaf, in sample.
        importance: ``error_rate * error_coverage``, by which leaves are sorted.
        valid: Whether error rate and error coverage in sample exceed their thresholds (``delta`` and ``tau`` of the
            analysis).
        interval: 95 % Wilson interval of the error rate, held out.
        heldout_error_rate: Error rate, held out.
        heldout_error_coverage: Error coverage, held out.
        heldout_valid: Whether error rate and error coverage, held out, exceed the same thresholds.
        gain: What fixing the leaf gains: the number of failures that would vanish if its examples failed as the others
            of the group do, by held-out error rates. None if the tree has no pattern.
    """

    rule: str
    size: int
    error_rate: float
    error_coverage: float
    importance: float
    valid: bool
    interval: tuple[float, float] | None = None
    heldout_error_rate: float | None = None
    heldout_error_coverage: float | None = None
    heldout_valid: bool | None = None
    gain: float | None = None

    @property
    def lower_bound(self) -> float:
        """Lower end of the interval of the held-out error rate; 0 without an interval."""
        return 0.0 if self.interval is None else self.interval[0]

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key of the leaves that it pays most to fix, by gain; reports without gains by importance."""
        return -(self.gain or 0.0), -self.importance

    @property
    def shown_as_valid(self) -> bool:
        """Whether the leaf is valid held out or, in a report without held-out rates, in sample."""
        return self.valid if self.heldout_valid is None else self.heldout_valid


@dataclass(frozen=True)
class NodeReport(Readable):
    """One node of a failure tree, for drawing the tree; rates are in [0, 1].

    Attributes:
        size: Number of examples in the node.
        failures: Number of its examples that failed.
        error_rate: Share of the node's examples that failed, in sample.
        error_coverage: Share of the group's failures that are in the node, in sample.
        interval: 95 % Wilson interval of the error rate on folds that the tree was not grown on.
        heldout_error_rate: Error rate on folds that the tree was not grown on; that of the root is its error rate.
        heldout_error_coverage: Error coverage on folds that the tree was not grown on.
        parent: Index of the parent in ``GroupReport.nodes``; None for the root, which comes first.
        above: Whether the node is the branch on which the parent's feature is above the threshold; None for the root.
        feature: Feature that an inner node splits on; None for a leaf.
        threshold: Threshold of an inner node; None for a leaf.
        leaf: Index of a leaf in ``GroupReport.leaves``; None for an inner node.
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
    heldout_error_rate: float | None = None
    heldout_error_coverage: float | None = None

    @property
    def lower_bound(self) -> float:
        """Lower end of the interval of the held-out error rate; 0 without an interval."""
        return 0.0 if self.interval is None else self.interval[0]


@dataclass(frozen=True)
class GroupReport(Readable):
    """The failure tree of one group of examples, such as those with one label.

    Attributes:
        grouping: Name of the grouping: "label", "prediction", "pair", "union", "metadata" or "cluster".
        class_name: Class of the group, or the name of a pair ("cat -> dog"), value ("camera = old") or cluster; its key
            is "class".
        size: Number of examples in the group.
        base_error_rate: Share of the group's examples that failed.
        aler: Average leaf error rate (ALER) on the examples that the tree was grown on.
        heldout_aler: ALER on folds that the tree was not grown on.
        heldout_aler_minus_ber: Held-out ALER minus the base error rate of the folds that the trees were grown on.
        heldout_stderr: Standard error of ``heldout_aler_minus_ber``.
        pattern: Whether the p-value of the tree passes Benjamini-Hochberg over groups at level 0.05.
        skipped: Reason why there is no tree; None if there is one.
        leaves: Leaves, the most important first.
        nodes: Nodes, the root first and parents before their children.
    """

    grouping: str
    class_name: str = field(metadata={"key": "class"})  # "class" is a reserved word in Python
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
