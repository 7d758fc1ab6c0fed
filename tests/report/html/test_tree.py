"""A tree becomes an outline, or nothing where it is none."""

import dataclasses

import numpy as np
import pytest

from lightning_failures.data.report import FeatureReport
from lightning_failures.data.tree_report import GroupReport, NodeReport
from lightning_failures.report.html.tree import feature_name, outline
from tests.report.html.a_run import a_group

TREE = a_group("label", "cat", 0, np.random.default_rng(0))


def test_outline__parents_around_children_and_the_worse_first():
    root = outline(TREE, {17: FeatureReport(17, name="red stroke")})
    assert (root.index, root.parent, root.feature, root.leaf) == (0, None, None, None)
    worse, better = root.children
    assert (worse.index, worse.feature, worse.above) == (2, "“red stroke”", True)
    assert (root.splits, root.split_name) == (17, "feature 17 “red stroke”")
    assert (better.splits, better.split_name) == (None, "")
    assert (better.index, better.above, better.leaf) == (1, False, 0)
    assert {child.index for child in worse.children} == {3, 4}
    assert {child.feature for child in worse.children} == {"feature 18"}


def test_outline__the_worse_first_on_held_out_examples():
    first, below, above, *rest = TREE.nodes
    worse = dataclasses.replace(below, heldout_error_rate=0.99)
    swapped = dataclasses.replace(TREE, nodes=(first, worse, above, *rest))
    assert [child.index for child in outline(TREE, {}).children] == [2, 1]
    assert [child.index for child in outline(swapped, {}).children] == [1, 2]


def nodes(*parents):
    return tuple(NodeReport(9, 3, 0.3, parent=p, feature=1, threshold=0.5) for p in parents)


@pytest.mark.parametrize(
    "found",
    [
        (),
        nodes(None),  # one node is no tree
        nodes(0, 0),
        nodes(None, 1),  # its own parent
        nodes(None, 2, 1),
        nodes(None, -1),
        nodes(None, None),
        nodes(None, *range(40)),  # deeper than any that is grown
        (NodeReport(9, 3), NodeReport(4, 3, parent=0)),  # a split without a feature
    ],
)
def test_outline__no_tree(found):
    assert outline(GroupReport("label", "cat", 9, nodes=found), {}) is None


def test_outline__a_leaf_that_is_not_there():
    odd = dataclasses.replace(TREE, nodes=(TREE.nodes[0], dataclasses.replace(TREE.nodes[1], leaf=99), *TREE.nodes[2:]))
    assert outline(odd, {}).children[1].leaf is None


def test_feature_name__what_people_wrote_wins():
    assert feature_name(3, None) == "feature 3"
    assert feature_name(3, FeatureReport(3, caption="a photo of a red cat")) == "feature 3 (perhaps “red cat”)"
    assert feature_name(3, FeatureReport(3, caption="a photo of a red cat", name="red")) == "feature 3 “red”"
