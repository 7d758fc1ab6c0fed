"""Two runs compared: planted changes are found, noise is not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from lightning_failures.errors import DataError
from lightning_failures.report.comparison import compare
from tests.report.runs import NAMES, run


@st.composite
def runs(draw):
    """Two runs on overlapping examples, some with another label, over class lists that differ."""
    ids = draw(st.lists(st.integers(0, 40), min_size=1, max_size=20, unique=True))
    both = []
    for names in (NAMES, draw(st.sampled_from([NAMES, NAMES[:2], ("dog", "cat", "eel", "fox")]))):
        mine = [i for i in ids if draw(st.booleans()) or i == ids[0]]
        guesses = [draw(st.integers(0, len(names) - 1)) for _ in mine]
        labels = [names.index("cat") if draw(st.integers(0, 9)) or i == ids[0] else names.index("dog") for i in mine]
        values = [draw(st.sampled_from([-1.0, 1.0, float("nan")])) for _ in mine]
        modes = draw(st.sets(st.sampled_from(names)))
        both.append(run(mine, labels, guesses, values, names, modes=modes))
    known = [{i: names[k] for i, k in zip(t.ids.tolist(), t.labels.tolist(), strict=True)} for t, names in
             ((one.table, one.table.class_names) for one in both)]  # fmt: skip
    shared = known[0].keys() & known[1].keys()
    assume(2 * sum(known[0][i] != known[1][i] for i in shared) <= len(shared))  # else refused as other data
    return tuple(both)


def test_compare__planted_changes():
    """Ids 0-9 are fixed, 10-13 are new, 14-19 persist, the rest was never wrong."""
    ids = list(range(60))
    first = [1 if i < 10 or 14 <= i < 20 else 0 for i in ids]
    second = [2 if 10 <= i < 20 else 0 for i in ids]
    found = compare(run(ids, [0] * 60, first), run(ids, [0] * 60, second))
    assert [one.id for one in found.fixed] == [*range(10)]
    assert [one.id for one in found.new] == [*range(10, 14)]
    assert [one.id for one in found.persistent] == [*range(14, 20)]
    assert (found.persistent[0].label, found.persistent[0].a, found.persistent[0].b) == ("cat", "dog", "eel")
    (cat,) = found.classes
    assert (cat.name, cat.examples, cat.fixed, cat.new, cat.persistent) == ("cat", 60, 10, 4, 6)
    assert (cat.error_rate_a, cat.error_rate_b) == pytest.approx((16 / 60, 10 / 60))
    assert cat.change == pytest.approx(-0.1)
    assert cat.p_value == pytest.approx(binomtest(4, 14).pvalue)
    assert not cat.different
    assert found.same_predictions == pytest.approx(40 / 60)
    assert found.agreement == pytest.approx(cohen_kappa_score([g != 0 for g in first], [g != 0 for g in second]))
    assert (found.a.accuracy, found.b.accuracy) == pytest.approx((44 / 60, 50 / 60))


@settings(deadline=None, max_examples=40)
@given(runs())
def test_compare__counts_and_tests_by_the_definition(pair):
    """Example by example, in plain Python, and with SciPy's own test."""
    a, b = pair
    found = compare(a, b)
    known = []
    for one in pair:
        table, names = one.table, one.table.class_names
        rows = zip(table.ids.tolist(), table.labels.tolist(), table.predictions.tolist(), strict=True)
        known.append({i: (names[label], names[guess]) for i, label, guess in rows})
    shared = [i for i in known[0] if i in known[1]]
    same = [i for i in shared if known[0][i][0] == known[1][i][0]]
    assert found.examples == len(same)
    assert found.relabelled == len(shared) - len(same)
    assert (found.only_a, found.only_b) == (len(known[0]) - len(shared), len(known[1]) - len(shared))
    failed = [{i for i in same if one[i][0] != one[i][1]} for one in known]
    assert {one.id for one in found.fixed} == failed[0] - failed[1]
    assert {one.id for one in found.new} == failed[1] - failed[0]
    assert {one.id for one in found.persistent} == failed[0] & failed[1]
    for entry in found.classes:
        mine = {i for i in same if known[0][i][0] == entry.name}
        fixed, new = len(mine & failed[0] - failed[1]), len(mine & failed[1] - failed[0])
        assert (entry.examples, entry.fixed, entry.new) == (len(mine), fixed, new)
        expected = binomtest(fixed, fixed + new).pvalue if fixed + new else 1.0
        assert entry.p_value == pytest.approx(expected)
        assert entry.error_rate_b - entry.error_rate_a == pytest.approx(entry.change)
    for name in ("examples", "fixed", "new", "persistent"):
        assert sum(getattr(entry, name) for entry in found.classes) == getattr(found.overall, name)


@settings(deadline=None, max_examples=30)
@given(runs())
def test_compare__with_itself_nothing_changes(pair):
    one = pair[0]
    found = compare(one, one)
    assert found.fixed == found.new == ()
    assert found.relabelled == found.only_a == found.only_b == 0
    assert found.same_predictions == 1
    assert found.agreement in (None, pytest.approx(1))
    assert not any(entry.different or entry.change for entry in (*found.classes, found.overall))
    assert all(mode.fate in ("persistent", "unknown") for mode in found.modes)  # unknown: without a flagged failure
    assert len(found.modes) == sum(entry.pattern for entry in one.report.classes)


@settings(deadline=None, max_examples=30)
@given(runs())
def test_compare__the_other_way_round(pair):
    there, back = compare(*pair), compare(*reversed(pair))
    assert [one.id for one in there.fixed] == [one.id for one in back.new]
    assert [(one.id, one.a, one.b) for one in there.persistent] == [(one.id, one.b, one.a) for one in back.persistent]
    assert (there.only_a, there.classes_only_a) == (back.only_b, back.classes_only_b)
    turned = {entry.name: entry for entry in back.classes}
    assert turned.keys() == {entry.name for entry in there.classes}
    for entry in there.classes:
        assert (entry.change, entry.p_value) == (-turned[entry.name].change, turned[entry.name].p_value)
        assert (entry.fixed, entry.different) == (turned[entry.name].new, turned[entry.name].different)
    assert there.agreement == (None if back.agreement is None else pytest.approx(back.agreement))
    fates = {"new": "gone", "gone": "new"}
    assert sorted((mode.class_name, mode.fate) for mode in there.modes) == sorted(
        (mode.class_name, fates.get(mode.fate, mode.fate)) for mode in back.modes
    )


def test_compare__many_classes_of_noise_are_no_difference():
    """Two models that fail by the same chance: Benjamini-Hochberg lets through almost none of 200 classes."""
    rng = np.random.default_rng(0)
    names = [f"class {k}" for k in range(200)]
    ids, labels = list(range(10_000)), [i % 200 for i in range(10_000)]
    a, b = (
        [label if rng.random() > 0.3 else (label + 1) % 200 for label in labels] for _ in range(2)
    )  # independent of each other
    found = compare(run(ids, labels, a, names=names), run(ids, labels, b, names=names))
    assert sum(entry.p_value <= 0.05 for entry in found.classes) > 2
    assert not any(entry.different for entry in found.classes)
    better = [0 if label == 0 else guess for label, guess in zip(labels, b, strict=True)]
    a = [1 if label == 0 else guess for label, guess in zip(labels, a, strict=True)]
    found = compare(run(ids, labels, a, names=names), run(ids, labels, better, names=names))
    assert [entry.name for entry in found.classes if entry.different] == ["class 0"]


def test_compare__in_a_multilabel_task_each_condition_is_compared():
    names = ("no cat", "cat", "no dog", "dog")  # two for each condition
    ids, labels = [0, 0, 1, 1], [1, 2, 0, 3]
    found = compare(run(ids, labels, [0, 2, 0, 3], names=names), run(ids, labels, [1, 3, 0, 3], names=names))
    assert (found.examples, found.relabelled) == (4, 0)
    assert [(one.id, one.label) for one in found.fixed] == [(0, "cat")]
    assert [(one.id, one.label) for one in found.new] == [(0, "no dog")]


def test_compare__no_table_or_nothing_in_common():
    one = run([1, 2], [0, 0], [0, 1])
    with pytest.raises(DataError, match=r"/runs/a has no table of examples"):
        compare(one, replace(one, table=None))
    with pytest.raises(DataError, match="no example in common"):
        compare(one, run([3], [0], [0]))
    with pytest.raises(DataError, match="no example in common"):
        compare(one, run([1, 2], [1, 1], [0, 1]))


def test_compare__other_data_under_the_same_ids_is_refused():
    with pytest.raises(DataError, match=r"3 of the 4 ids .* different data"):
        compare(run([0, 1, 2, 3], [0, 1, 0, 1], [0, 0, 0, 0]), run([0, 1, 2, 3], [0, 0, 1, 0], [0, 0, 0, 0]))


def test_compare__notes():
    one = run([*range(9)], [0] * 9, [1] * 9)
    assert compare(one, one).notes == (
        "Neither run has failure directions, so there are no failure modes to compare.",
        "Examples are joined by id, because the runs have no digests of images: the same id may be another image.",
    )
    notes = compare(
        replace(one, notes=("x is damaged",)),
        run([*range(9)], [0] * 5 + [1] * 4, [1] * 9, stage="test", encoder_fingerprint="f"),
    ).notes
    assert notes[0] == "Run a: x is damaged"
    assert "different parts of the data" in notes[1]
    assert "different labels" in notes[2]
    assert "encoders of the directions differ" in notes[3]


def test_to_dict__is_json_of_plain_values():
    one = run([0, 1], [0, 0], [0, 1], [1.0, -1.0], modes={"cat"})
    values = json.loads(json.dumps(compare(one, one).to_dict(), allow_nan=False))
    assert values["schema"] == 1
    assert values["persistent"] == [{"id": 1, "label": "cat", "a": "dog", "b": "dog"}]
    assert values["modes"][0]["class"] == "cat"
    assert values["classes"][0]["p_value"] == 1.0
