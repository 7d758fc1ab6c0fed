from lightning_failures.trees.growing import Split, least_leaf, rule


def test_least_leaf__two_percent_but_not_below_twenty():
    assert [least_leaf(n, None) for n in (10, 1000, 1001, 5000)] == [20, 20, 21, 100]
    assert least_leaf(5000, 3) == 3


def test_rule__one_condition_a_feature():
    assert rule(()) == "all examples"
    assert rule((Split(17, 0.36, False), Split(3, 1.2, True))) == "feature 17 <= 0.36 and feature 3 > 1.2"
    assert rule((Split(1, 0.5, False), Split(1, 0.1, True), Split(1, 0.4, False))) == "0.1 < feature 1 <= 0.4"
