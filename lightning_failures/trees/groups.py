"""The failure trees of an analysis, one per label group and one per prediction group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_failures.core.arrays import defined
from lightning_failures.core.budget import SKIPPED_FOR_TIME, Deadline
from lightning_failures.core.text import fit_failed
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import GROUPINGS, Grouping
from lightning_failures.data.members import ClassSubset, RowValues, members_of
from lightning_failures.data.partition import Partition
from lightning_failures.data.tree_report import GroupReport, LeafReport, NodeReport
from lightning_failures.stats.intervals import benjamini_hochberg
from lightning_failures.trees.error_rates import coverage_at_rate
from lightning_failures.trees.fit import FailureTree, fit_failure_tree


def grow_trees(
    grades: Grades,
    features: RowValues,
    share: Partition,
    *,
    delta: float,
    tau: float,
    seed: int,
    deadline: Deadline | None,
    raise_errors: bool = False,
    groupings: Sequence[Grouping] = GROUPINGS,
) -> tuple[tuple[GroupReport, ...], dict[tuple[str, str], FailureTree]]:
    """Grow the trees of the classes that this process owns, most failures first, and return the reports of all groups.

    Args:
        grades: N rows.
        features: Features of the rows whose label or prediction is a class that this process owns.
        share: The classes that this process owns.
        delta: A valid leaf has an error rate above the base error rate + delta ...
        tau: ... and an error coverage above tau.
        seed: Seed of the folds.
        deadline: Trees that the deadline does not leave time for are skipped.
        raise_errors: Raise the error of a single tree. Otherwise its group is skipped, unless no tree can be grown.
        groupings: How the examples are divided into groups.

    Returns:
        A report of each group, label groups first, and the trees by grouping and class name.
    """
    groups: dict[tuple[str, str], tuple[int, ClassSubset]] = {}
    for grouping in groupings:
        owners = grouping.assign(grades).owner_class.tolist()
        for k, members in zip(owners, members_of(grades, grouping, share.sampled), strict=True):
            groups[grouping.name, members.name] = (k, members)

    errors: list[Exception] = []  # of this process

    def grow_own_trees() -> dict[tuple[str, str], FailureTree | str]:
        own = [key for key, (k, members) in groups.items() if share.owns(k) and len(members.rows)]
        grown: dict[tuple[str, str], FailureTree | str] = {}
        for key in sorted(own, key=lambda key: -int(groups[key][1].failed.sum())):
            if deadline is not None and deadline.passed:
                break
            subset = groups[key][1]
            try:
                grown[key] = fit_failure_tree(
                    features[subset.rows], subset.failed, ids=subset.ids, groups=subset.sources, seed=seed
                )
            except Exception as error:
                if raise_errors:
                    raise
                errors.append(error)
                grown[key] = fit_failed(error)
        return grown

    grown = share.merge_results(grow_own_trees)
    trees = {key: tree for key in groups if isinstance(tree := grown.get(key), FailureTree)}
    failed = {key: reason for key, reason in grown.items() if isinstance(reason, str)}
    if failed and not trees:
        share.raise_first(errors)
    errors.clear()  # an error keeps alive what its frames hold
    p_values = np.array([tree.p_value for tree in trees.values()])
    patterns = dict(zip(trees, benjamini_hochberg(p_values).tolist(), strict=True))
    reports = []
    for key, (_, members) in groups.items():
        size = len(members.rows)
        if key in trees:
            reports.append(_group_report(*key, size, trees[key], patterns[key], delta, tau))
        else:
            reason = failed.get(key, SKIPPED_FOR_TIME if size else "no examples")
            reports.append(GroupReport(*key, size=size, skipped=reason))
    return tuple(reports), trees


def _group_report(
    grouping: str, name: str, size: int, tree: FailureTree, pattern: bool, delta: float, tau: float
) -> GroupReport:
    """Return the report of a group with a tree."""
    valid = {id(leaf) for leaf in tree.valid_leaves(delta, tau)}
    heldout_valid = {id(leaf) for leaf in tree.valid_leaves(delta, tau, held_out=True)}
    gains = _gains(tree) if pattern else [None] * len(tree.leaves)
    return GroupReport(
        grouping,
        name,
        size=size,
        base_error_rate=defined(tree.base_error_rate),
        aler=defined(tree.aler),
        heldout_aler=defined(tree.heldout_aler),
        heldout_aler_minus_ber=defined(tree.heldout_aler_minus_ber),
        heldout_stderr=defined(tree.heldout_aler_stderr),
        pattern=pattern,
        skipped=tree.skipped,
        leaves=tuple(
            LeafReport(
                rule=leaf.rule,
                size=leaf.size,
                error_rate=leaf.error_rate,
                error_coverage=leaf.error_coverage,
                importance=leaf.importance,
                valid=id(leaf) in valid,
                interval=leaf.interval,
                heldout_error_rate=leaf.heldout_error_rate,
                heldout_error_coverage=leaf.heldout_error_coverage,
                heldout_valid=None if leaf.heldout_error_rate is None else id(leaf) in heldout_valid,
                gain=gain,
            )
            for leaf, gain in zip(tree.leaves, gains, strict=True)
        ),
        nodes=_node_reports(tree),
    )


def _gains(tree: FailureTree) -> list[float | None]:
    """Return how many failures would vanish if the examples of each leaf failed as the others do, held out."""
    sizes = np.array([leaf.size for leaf in tree.leaves], dtype=np.float64)
    rates = np.array([np.nan if one.heldout_error_rate is None else one.heldout_error_rate for one in tree.leaves])
    others = sizes.sum() - sizes
    rates_of_others = ((rates * sizes).sum() - rates * sizes) / np.where(others > 0, others, np.nan)
    return [defined(gain) for gain in np.maximum(rates - rates_of_others, 0.0) * sizes]


def _node_reports(tree: FailureTree) -> tuple[NodeReport, ...]:
    """Return a report of every node of a tree, root first; the examples of a node are those of the leaves below it."""
    nodes = tree.nodes
    total_failures = sum(leaf.failures for leaf in tree.leaves)
    reports = []
    for i, below in enumerate(nodes.leaves_below()):
        inside = [tree.leaves[number] for number in np.flatnonzero(below)]
        size = sum(leaf.size for leaf in inside)
        failures = sum(leaf.failures for leaf in inside)
        parent, above = nodes.parent(i) if i else (None, None)
        is_leaf = bool(nodes.feature[i] < 0)
        reports.append(
            NodeReport(
                size=size,
                failures=failures,
                error_rate=failures / size if size else None,
                error_coverage=failures / total_failures if total_failures else None,
                interval=tree.intervals[i],
                parent=parent,
                above=above,
                feature=None if is_leaf else int(nodes.feature[i]),
                threshold=None if is_leaf else float(nodes.threshold[i]),
                leaf=int(nodes.leaf[i]) if is_leaf else None,
                heldout_error_rate=tree.heldout_error_rates[i],
                heldout_error_coverage=coverage_at_rate(tree.heldout_error_rates[i], size, total_failures),
            )
        )
    return tuple(reports)
