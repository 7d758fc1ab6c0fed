"""A failure tree as a nested outline of its nodes."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_failures.core.text import clean, shorten_caption
from lightning_failures.data.grouping import LABEL, PREDICTION
from lightning_failures.data.report import FeatureReport
from lightning_failures.data.tree_report import GroupReport, NodeReport

MAX_DEPTH = 12


@dataclass(frozen=True)
class Branch:
    """One node of the outline.

    Attributes:
        index: Index of the node in ``GroupReport.nodes``.
        parent: Index of the parent, or None.
        feature: Short name of the feature that the parent splits on; None at the root.
        above: Whether the feature is above the threshold of the parent in this node.
        leaf: Index in ``GroupReport.leaves``, or None.
        splits: Number of the feature that this node splits on, or None.
        split_name: Name of that feature, with what it may mean; empty at a leaf.
        children: The two children, the one with the higher error rate first, on held-out examples if that is known.
    """

    index: int
    parent: int | None
    feature: str | None
    above: bool
    leaf: int | None
    splits: int | None = None
    split_name: str = ""
    children: tuple[Branch, ...] = ()


def group_title(grouping: str, class_name: str) -> str:
    """Return the name of a group: what its failures are.

    >>> group_title("label", "seven"), group_title("prediction", "seven"), group_title("cluster", "3")
    ('missed seven', 'called seven', '3')
    """
    return {LABEL.name: "missed ", PREDICTION.name: "called "}.get(grouping, "") + class_name


def short_name(number: int, feature: FeatureReport | None) -> str:
    """Return the user-given name of a feature, else its number.

    >>> short_name(17, FeatureReport(17, name="red stroke")), short_name(3, FeatureReport(3, caption="red"))
    ('“red stroke”', 'feature 3')
    """
    return f"“{clean(feature.name, 60)}”" if feature is not None and feature.name else f"feature {number}"


def feature_name(number: int, feature: FeatureReport | None) -> str:
    """Return the name of a feature: the user-given one, else its number with the caption that CLIP suggests.

    >>> feature_name(17, FeatureReport(17, name="red stroke")), feature_name(3, FeatureReport(3, caption="red"))
    ('feature 17 “red stroke”', 'feature 3 (perhaps “red”)')
    """
    if feature is not None and feature.name:
        return f"feature {number} “{clean(feature.name, 60)}”"
    if feature is not None and feature.caption:
        return f"feature {number} (perhaps “{shorten_caption(feature.caption)[:60]}”)"
    return f"feature {number}"


def outline(group: GroupReport, features: dict[int, FeatureReport]) -> Branch | None:
    """Return the root of the nested nodes; None if there is no split, or the nodes are not a tree of a sane depth."""
    nodes = group.nodes
    children: dict[int, list[int]] = {}
    depth = [0] * len(nodes)
    # nodes come from a file: parents must come first, and the depth must be bounded
    for index, node in enumerate(nodes):
        if index == 0 and node.parent is None:
            continue
        if node.parent is None or not 0 <= node.parent < index or depth[node.parent] >= MAX_DEPTH:
            return None
        depth[index] = depth[node.parent] + 1
        children.setdefault(node.parent, []).append(index)
    if not children or any(nodes[index].feature is None for index in children):
        return None

    def branch(index: int) -> Branch:
        node, below = nodes[index], children.get(index, [])
        below = sorted(below, key=lambda i: -_error_rate(nodes[i]))
        split = None if node.parent is None else nodes[node.parent].feature
        return Branch(
            index=index,
            parent=node.parent,
            feature=None if split is None else short_name(split, features.get(split)),
            above=bool(node.above),
            leaf=node.leaf if node.leaf is not None and 0 <= node.leaf < len(group.leaves) else None,
            splits=node.feature if below else None,
            split_name=feature_name(node.feature, features.get(node.feature))
            if below and node.feature is not None
            else "",
            children=tuple(map(branch, below)),
        )

    return branch(0)


def _error_rate(node: NodeReport) -> float:
    """Return the held-out error rate of a node; that in sample in reports of former versions."""
    return (node.error_rate if node.heldout_error_rate is None else node.heldout_error_rate) or 0.0
