"""Two runs compared: planted changes, an independent reference for the test, and what must hold of any two runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.directions import FailureDirections
from lightning_failures.errors import DataError
from lightning_failures.report.comparison import compare
from lightning_failures.report.run_folder import Run

NAMES = ("cat", "dog", "eel")


def run(ids, labels, guesses, values=None, names=NAMES, *, modes=None, directions=None, **options) -> Run:
    """A run from plain lists; ``modes`` are the classes in which a pattern was found."""
    n = len(ids)
    order = torch.argsort(torch.tensor(ids, dtype=torch.int64), stable=True)
    values = torch.full((n,), float("nan")) if values is None else torch.tensor(values, dtype=torch.float32)
    columns = (torch.tensor(column, dtype=torch.int64)[order] for column in (ids, labels, guesses))
    table = ExampleTable(*columns, torch.ones(n), values[order], *torch.full((2, n), -1).unbind(), tuple(names))
    classes = []
    for k, name in enumerate(names):
        mine = [guess == label for label, guess in zip(labels, guesses, strict=True) if label == k]
        tested = {} if modes is None else {"p_value": 0.001, "pattern": name in modes, "cv_score": 0.9}
        accuracy = float(np.mean(mine)) if mine else None
        classes.append(ClassReport(name, len(mine), accuracy=accuracy, hardest_captions=(f"a red {name}",), **tested))
    report = FailureReport(n, None, tuple(classes), **({"stage": "fit", "epoch": 3, "global_step": 9} | options))
    return Run(Path("/runs/a"), report, (report,), table, directions=directions)


@st.composite
def runs(draw):
    """Two runs on overlapping examples, some with another label, over class lists that differ."""
    ids = draw(st.lists(st.integers(0, 40), min_size=1, max_size=40, unique=True))
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


@settings(deadline=None, max_examples=60)
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


@settings(deadline=None, max_examples=50)
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


@settings(deadline=None, max_examples=50)
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
    assert compare(one, one).notes == ("Neither run has failure directions, so there are no failure modes to compare.",)
    told = compare(
        replace(one, notes=("x is damaged",)),
        run([*range(9)], [0] * 5 + [1] * 4, [1] * 9, stage="test", encoder_fingerprint="f"),
    ).notes
    assert told[0] == "Run a: x is damaged"
    assert "different parts of the data" in told[1]
    assert "different labels" in told[2]
    assert "encoders of the directions differ" in told[3]


def test_to_dict__is_json_of_plain_values():
    one = run([0, 1], [0, 0], [0, 1], [1.0, -1.0], modes={"cat"})
    told = json.loads(json.dumps(compare(one, one).to_dict(), allow_nan=False))
    assert told["schema"] == 1
    assert told["persistent"] == [{"id": 1, "label": "cat", "a": "dog", "b": "dog"}]
    assert told["modes"][0]["class"] == "cat"
    assert told["classes"][0]["p_value"] == 1.0


# --------------------------------------------------------------------------------------------------------------- modes


def directions(*rows, mean: float = 0.0) -> FailureDirections:
    """Of the first classes, with these weights."""
    weight = torch.tensor(rows, dtype=torch.float32)
    k, d = weight.shape
    return FailureDirections(
        torch.arange(k), weight, *torch.zeros(5, k).unbind(), torch.full((d,), mean), torch.ones(d), torch.zeros(4)
    )


IDS = [*range(20)]
FAILED = [1] * 10 + [0] * 10


def with_mode(flagged, **options) -> Run:
    """Twenty cats, of which ten fail; the given ones are flagged."""
    values = [-1.0 if i in flagged else 1.0 for i in IDS]
    return run(IDS, [0] * 20, FAILED, values, **({"modes": {"cat"}} | options))


def test_modes__matched_by_directions():
    same, other = directions([1.0, 0.1]), directions([-0.1, 1.0])
    known = {"encoder_fingerprint": "f"}
    a = with_mode({0, 1, 2, 15}, directions=directions([1.0, 0.0]), **known)
    (mode,) = compare(a, with_mode({0, 1, 2, 3}, directions=same, **known)).modes
    assert (mode.fate, mode.matched_by, mode.size_a, mode.size_b, mode.shared) == (
        "persistent",
        "directions",
        3,
        4,
        1.0,
    )
    assert mode.cosine == pytest.approx(1 / 1.01**0.5)
    assert (mode.caption_a, mode.cv_score_b) == ("a red cat", 0.9)
    gone, new = compare(a, with_mode({0, 1, 2}, directions=other, **known)).modes  # though its members are the same
    assert [(m.fate, m.size_a, m.size_b) for m in (gone, new)] == [("gone", 3, None), ("new", None, 3)]


@pytest.mark.parametrize("change", [{"encoder_fingerprint": "g"}, {"directions": directions([1.0, 0.0], mean=0.5)}])
def test_modes__matched_by_members_where_directions_lie_in_other_spaces(change):
    known = {"encoder_fingerprint": "f", "directions": directions([1.0, 0.0])}
    a = with_mode({0, 1, 2, 3}, **known)
    (mode,) = compare(a, with_mode({2, 3, 4, 5}, **(known | change))).modes
    assert (mode.fate, mode.matched_by, mode.cosine, mode.shared) == ("persistent", "members", None, 0.5)
    fates = [mode.fate for mode in compare(a, with_mode({3, 4, 5, 6}, **(known | change))).modes]
    assert fates == ["gone", "new"]


def test_modes__of_one_run_alone():
    a, b = with_mode({0, 1}), with_mode({0, 1}, modes=set())
    (gone,), (new,) = compare(a, b).modes, compare(b, a).modes
    assert (gone.fate, gone.size_a, gone.size_b, gone.why) == ("gone", 2, None, "no pattern")
    assert (new.fate, new.size_a, new.size_b) == ("new", None, 2)


def test_modes__nothing_tells():
    (mode,) = compare(with_mode({0, 1}), with_mode({15})).modes  # no flagged failure
    assert (mode.fate, mode.matched_by) == ("unknown", None)
    (mode,) = compare(with_mode({0, 1}), with_mode({0, 1}, modes=None)).modes  # no directions were sought
    assert (mode.fate, mode.why) == ("unknown", "no directions were fitted")


def test_modes__too_few_failures_for_one_are_an_end():
    cured = run(IDS, [0] * 20, [1] * 3 + [0] * 17)
    skipped = replace(cured.report.classes[0], skipped="3 failures; at least 10 are needed")
    report = replace(cured.report, classes=(skipped, *cured.report.classes[1:]))
    (mode,) = compare(with_mode({0, 1}), replace(cured, report=report)).modes
    assert (mode.fate, mode.why) == ("gone", "3 failures; at least 10 are needed")
