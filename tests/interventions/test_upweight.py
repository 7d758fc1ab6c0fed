"""Which examples Upweight chooses, and how much they weigh."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import JudgedExamples, Upweight


def judged(values, *, labels=None, reasons=(None,)) -> JudgedExamples:
    labels = np.zeros(len(values), dtype=np.int64) if labels is None else np.asarray(labels)
    names = tuple(f"class {k}" for k in range(len(reasons)))
    return JudgedExamples(labels, np.asarray(values, dtype=np.float32), names, tuple(reasons))


def test_decide__flagged_of_classes_with_a_pattern():
    examples = judged(
        [-1, 1, 2, -1, 1, np.nan], labels=[0, 0, 0, 1, 1, 2], reasons=(None, "no pattern", "skipped: few")
    )
    decision = Upweight(factor=4.0).decide(examples)
    assert decision.weights.tolist() == [4, 1, 1, 1, 1, 1]
    assert [entry["flagged"] for entry in decision.classes] == [1, 0, 0]
    assert [entry["reason"] for entry in decision.classes] == [None, "no pattern", "skipped: few"]
    assert decision.classes[0]["share_of_draws"] == pytest.approx(4 / 6)
    assert decision.classes[0]["share_of_all_draws"] == pytest.approx(4 / 9)


def test_decide__every_example_flagged_is_capped_at_the_hardest():
    decision = Upweight(factor=2.0, max_flagged=0.5).decide(judged([-4, -1, -3, -2]))
    assert decision.weights.tolist() == [2, 1, 2, 1]
    assert decision.classes[0]["reason"] == "capped at max_flagged"


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [np.nan, np.nan]])
def test_decide__nothing_flagged(values):
    assert (Upweight().decide(judged(values)).weights == 1).all()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"factor": 0.5}, "factor"),
        ({"factor": 21.0}, "factor"),
        ({"factor": "equal"}, "factor"),
        ({"max_factor": 0.5}, "max_factor"),
        ({"factor": None}, "factor"),
        ({"factor": float("nan")}, "factor"),
        ({"max_flagged": 0.0}, "max_flagged"),
        ({"start_epoch": -1}, "start_epoch"),
        ({"every_n_epochs": 0}, "every_n_epochs"),
        ({"start_epoch": 3, "stop_epoch": 3}, "stop_epoch"),
    ],
)
def test_options__refused_with_owner_name_and_value(options, name):
    with pytest.raises(ConfigurationError, match=f"Upweight\\({name}=.*got {options[list(options)[-1]]!r}"):
        Upweight(**options)


def test_options__are_told_in_full():
    one = Upweight(factor=3.0, every_n_epochs=2)
    assert one.options["factor"] == 3.0
    assert repr(eval(repr(one), {"Upweight": Upweight})) == repr(one)


def test_decide__balanced_gives_flagged_and_unflagged_of_a_class_equal_mass():
    examples = judged([-1, 1, 1, 1, -1, -2, 1, 1, 1, 1, -1, 1], labels=[0] * 4 + [1] * 6 + [2] * 2, reasons=(None,) * 3)
    weights = Upweight().decide(examples).weights
    for k in range(3):
        mine, flagged = examples.labels == k, examples.values < 0
        assert weights[mine & flagged].sum() == weights[mine & ~flagged].sum()
        assert (weights[mine & ~flagged] == 1).all()


def test_decide__balanced_is_capped_and_never_below_one():
    rare = judged([-1] + [1] * 99)
    assert Upweight().decide(rare).weights[0] == 20
    assert Upweight(max_factor=5).decide(rare).weights[0] == 5
    assert (Upweight(max_flagged=1.0).decide(judged([-1, -1, -1, 1])).weights == 1).all()


def test_announcement__only_of_balanced_weights():
    assert "factor=2.0" in (Upweight().announcement or "")
    assert Upweight(factor=2.0).announcement is None


def test_factors__where_failures_look_doubtful_at_most_two():
    sizes, counts = np.array([100, 100]), np.array([10, 0])
    assert Upweight()._factors(sizes, counts, 20.0).tolist() == [9, 1]
    assert Upweight()._factors(sizes, counts, 2.0).tolist() == [2, 1]
    assert Upweight(factor=4.0)._factors(sizes, counts, 2.0).tolist() == [4, 1]
