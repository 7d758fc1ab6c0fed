"""The JSON form of reports: round trip, unknown and missing keys."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.data.pin_check import PinCheck
from lightning_failures.data.report import (
    SCHEMA,
    ClassReport,
    ConfusionReport,
    FailureReport,
    FlaggedConfusionReport,
    MistakenReport,
    SliceReport,
    ValueReport,
)
from lightning_failures.data.tree_report import GroupReport, LeafReport

NUMBERS = st.floats()  # including NaN and infinities
MAYBE = st.none() | NUMBERS
TEXTS = st.text(max_size=12)
LEAVES = st.builds(
    LeafReport,
    rule=TEXTS,
    size=st.integers(0, 99),
    error_rate=NUMBERS,
    error_coverage=NUMBERS,
    importance=NUMBERS,
    valid=st.booleans(),
    interval=st.none() | st.tuples(NUMBERS, NUMBERS),
)
GROUPS = st.builds(
    GroupReport,
    grouping=st.sampled_from(["label", "prediction"]),
    class_name=TEXTS,
    size=st.integers(0, 99),
    aler=MAYBE,
    heldout_aler=MAYBE,
    skipped=st.none() | TEXTS,
    leaves=st.lists(LEAVES, max_size=3).map(tuple),
)
VALUES = st.builds(
    ValueReport,
    attribute=TEXTS,
    value=TEXTS,
    examples=st.integers(0, 99),
    failures=st.integers(0, 99),
    share=MAYBE,
    share_of_flagged_interval=st.none() | st.tuples(NUMBERS, NUMBERS),
)
SLICES = st.builds(
    SliceReport,
    attribute=TEXTS,
    value=TEXTS,
    class_name=st.none() | TEXTS,
    gap=MAYBE,
    gap_interval=st.none() | st.tuples(NUMBERS, NUMBERS),
)
MISTAKEN = st.builds(MistakenReport, class_name=TEXTS, count=st.integers(0, 99), share=NUMBERS)
FLAGGED = st.builds(
    FlaggedConfusionReport,
    class_name=TEXTS,
    count=st.integers(0, 99),
    share=NUMBERS,
    share_of_others=NUMBERS,
    p_value=NUMBERS,
)
CONFUSIONS = st.builds(ConfusionReport, label=TEXTS, prediction=TEXTS, count=st.integers(0, 99), share=NUMBERS)
CLASSES = st.builds(
    ClassReport,
    name=TEXTS,
    examples=st.integers(0, 99),
    cv_score=MAYBE,
    p_value=MAYBE,
    pattern=st.booleans(),
    hardest_captions=st.lists(TEXTS, max_size=2).map(tuple),
    hardest_caption_scores=st.lists(NUMBERS, max_size=2).map(tuple),
    hardest_ids=st.lists(st.integers(0, 2**60), max_size=3).map(tuple),
    enrichment=st.lists(VALUES, max_size=2).map(tuple),
    slices=st.lists(SLICES, max_size=2).map(tuple),
    mistaken_for=st.lists(MISTAKEN, max_size=2).map(tuple),
    flagged_mistaken_for=st.none() | FLAGGED,
    truth=st.none() | st.dictionaries(TEXTS, TEXTS, max_size=2),
)
REPORTS = st.builds(
    FailureReport,
    examples=st.integers(0, 99),
    accuracy=MAYBE,
    classes=st.lists(CLASSES, max_size=3).map(tuple),
    groups=st.lists(GROUPS, max_size=3).map(tuple),
    summary=st.dictionaries(TEXTS, NUMBERS, max_size=3),
    interventions=st.lists(st.dictionaries(TEXTS, NUMBERS | st.lists(NUMBERS, max_size=2), max_size=2), max_size=2).map(
        tuple
    ),
    timings=st.dictionaries(TEXTS, NUMBERS, max_size=2),
    slices=st.lists(SLICES, max_size=2).map(tuple),
    confusions=st.lists(CONFUSIONS, max_size=2).map(tuple),
    epoch=st.none() | st.integers(0, 99),
    notes=st.lists(TEXTS, max_size=2).map(tuple),
)


def values(data):
    """Yield all numbers and strings of nested JSON."""
    if isinstance(data, dict):
        data = list(data.values())
    return [leaf for item in data for leaf in values(item)] if isinstance(data, list) else [data]


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


@settings(deadline=None, max_examples=60)
@given(REPORTS)
def test_report__json_has_no_nan_and_reads_back(report):
    text = report.to_json()
    data = json.loads(text, parse_constant=refuse)
    assert data == report.to_dict()
    assert all(math.isfinite(value) for value in values(data) if isinstance(value, float))
    again = FailureReport.from_dict(data)
    assert again.to_dict() == data
    assert again.to_json() == text
    assert FailureReport.from_json(text).to_dict() == data
    assert isinstance(again.classes, tuple)
    assert all(isinstance(group.leaves, tuple) for group in again.groups)


def test_report__unknown_keys_are_ignored_at_every_level():
    leaf = LeafReport("all", 3, 0.5, 1.0, 0.5, valid=False, interval=(0.1, 0.9))
    report = FailureReport(3, 0.5, (ClassReport("cat", 3),), (GroupReport("label", "cat", 3, leaves=(leaf,)),))
    data = report.to_dict()
    for part in (data, data["classes"][0], data["groups"][0], data["groups"][0]["leaves"][0]):
        part["of a later version"] = {"any": ["thing"]}
    assert FailureReport.from_dict(data) == report


def test_report__keys_of_an_earlier_version_may_be_missing():
    report = FailureReport.from_dict({"examples": 1, "accuracy": 1.0, "classes": [{"name": "cat", "examples": 1}]})
    assert report.classes == (ClassReport("cat", 1),)
    assert report.groups == report.slices == report.confusions == report.classes[0].slices == ()
    assert report.classes[0].flagged_mistaken_for is None


def test_report__reads_by_key_as_the_file_does():
    report = FailureReport(2, 0.5, (ClassReport("cat", 2, hardest_ids=(4, 2)),), (GroupReport("label", "cat", 2),))
    assert report["classes"][0]["hardest_ids"] == [4, 2]
    assert report.classes[0]["hardest_ids"] == [4, 2]
    assert report["groups"][0]["class"] == "cat"
    assert report["schema"] == SCHEMA
    with pytest.raises(KeyError):
        report["no such key"]


def test_report__text_is_kept_as_written():
    text = FailureReport(1, None, (ClassReport("Zürich 猫", 1),)).to_json()
    assert "Zürich 猫" in text
    assert text.endswith("}\n")


def test_records__are_frozen():
    for record in (ClassReport("cat", 1), GroupReport("label", "cat", 1), FailureReport(1, None, ())):
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.examples = 7


def test_pin_check__status_of_a_later_version_is_said_as_it_is():
    assert PinCheck("cat 1", "cat", "quaran\u202etined", 4, 2, 0.5, (0.1, 0.9)).sentence.startswith("cat 1 is 'quaran")
