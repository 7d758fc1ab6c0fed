from lightning_failures.trees.growing import NodeSplit, min_leaf_size, rule_text


def test_least_leaf__two_percent_but_not_below_twenty():
    assert [min_leaf_size(n, None) for n in (10, 1000, 1001, 5000)] == [20, 20, 21, 100]
    assert min_leaf_size(5000, 3) == 3


def test_rule__one_condition_a_feature():
    assert rule_text(()) == "all examples"
    assert rule_text((NodeSplit(17, 0.36, False), NodeSplit(3, 1.2, True))) == "feature 17 <= 0.36 and feature 3 > 1.2"
    assert (
        rule_text((NodeSplit(1, 0.5, False), NodeSplit(1, 0.1, True), NodeSplit(1, 0.4, False)))
        == "0.1 < feature 1 <= 0.4"
    )
