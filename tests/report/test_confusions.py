"""Confusions as text: top pairs, what a class is mistaken for, and what its flags explain."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.data.report import (
    ClassReport,
    ConfusionReport,
    ConfusionSplitReport,
    FailureReport,
    FlaggedConfusionReport,
    MistakenReport,
)
from lightning_failures.report.confusions import confusion_lines, confusion_sentence, confusions_markdown
from lightning_failures.report.markdown import report_sections

CAT = ClassReport(
    "cat", 90, accuracy=0.5, mistaken_for=(MistakenReport("dog", 9, 0.45), MistakenReport("owl", 1, 0.05))
)
SPLIT = replace(CAT, pattern=True, flagged_mistaken_for=FlaggedConfusionReport("dog", 8, 0.8, 0.1, 0.0012))
PAIRS = (ConfusionReport("cat", "dog", 9, 0.45), ConfusionReport("owl", "cat", 1, 1.0))
ANY = st.text(st.characters(), max_size=300)


def a_report(*classes, pairs=PAIRS):
    return FailureReport(100, 0.5, classes, confusions=pairs)


def test_confusion_sentence__mostly_is_more_than_half():
    assert confusion_sentence(CAT) == "Most often mistaken for dog (9 failures, 45.0 %), then owl (5.0 %)."
    assert confusion_sentence(SPLIT).endswith(
        " The flagged failures are mostly mistaken for dog: 80.0 % of them, 10.0 % of the others (p = 0.0012)."
    )
    assert confusion_sentence(ClassReport("owl", 9)) == ""


def test_confusion_sentence__which_failures_follow_the_pattern():
    dog = ConfusionSplitReport("dog", 60, 0.6, 0.83, (0.7, 0.9), 0.15, True)
    owl = ConfusionSplitReport("owl", 30, 0.3, 0.12, (0.04, 0.2), 0.15, False)
    assert confusion_sentence(replace(SPLIT, confusion_split=(dog, owl))).endswith(
        " Of its failures as dog, 83.0 % are flagged; those as owl show no clear pattern: 12.0 % are"
        " flagged, as are 15.0 %"
        " of the correct images."
    )
    assert confusion_sentence(replace(SPLIT, confusion_split=(dog, replace(owl, pattern=True)))).endswith(
        " Of its failures as dog, 83.0 % are flagged; of those as owl, 12.0 %. Of the correct images, 15.0 %"
        " are flagged."
    )


def test_confusion_lines__pairs_then_what_flags_explain():
    lines = confusion_lines(a_report(SPLIT))
    assert lines[:2] == [
        "cat -> dog: 9 failures, 45.0 % of those of cat",
        "owl -> cat: 1 failure, 100.0 % of those of owl",
    ]
    assert lines[2:] == [f"cat: {confusion_sentence(SPLIT)}"]
    assert len(confusion_lines(a_report(CAT), limit=1)) == 1


def test_confusions_markdown__a_table_and_a_line_a_class():
    text = confusions_markdown(a_report(SPLIT))
    assert "| cat | dog | 9 | 45.0 % |" in text
    assert f"* **cat**: {confusion_sentence(SPLIT)}" in text
    assert confusions_markdown(a_report(CAT, pairs=())) == ""
    assert "confusions" in report_sections(a_report(CAT))


@given(ANY)
def test_confusions__hostile_names_keep_lines_and_tables_whole(name):
    split = FlaggedConfusionReport(name, 8, 0.8, 0.1, 0.0012)
    entry = replace(CAT, name=name, mistaken_for=(MistakenReport(name, 9, 0.45),), flagged_mistaken_for=split)
    parts = tuple(ConfusionSplitReport(name, 30, 0.3, 0.1, (0.0, 0.2), 0.15, pattern) for pattern in (True, False))
    entry = replace(entry, confusion_split=parts)
    report = a_report(entry, pairs=(ConfusionReport(name, name, 9, 0.45),))
    assert all(line.isprintable() for line in confusion_lines(report))
    lines = confusions_markdown(report).splitlines()
    assert len(lines) == 7
    assert lines[4].count("|") == 5
