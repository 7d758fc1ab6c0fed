"""Tables and lists: nothing that a user names can break one, and noise is not shown as a finding."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.data.records import DiagnosisReport
from lightning_failures.data.report import ClassReport, FailureReport, ValueReport
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.report.tables import (
    class_table,
    classes_markdown,
    diagnosis_lines,
    diagnosis_markdown,
    enrichment_lines,
    enrichment_markdown,
    error_changes,
    rank_classes,
    strongest_values,
    tree_markdown,
    trust_lines,
    trust_markdown,
)

CAPTIONS = {"hardest_captions": ("a photo of a red cat",), "easiest_captions": ("a photo of an orange cat",)}


FOUND = ClassReport("cat", 100, accuracy=0.7, cv_score=0.8, p_value=0.001, pattern=True, aler=0.5, base_error_rate=0.3, flagged_error_rate=0.62, unflagged_error_rate=0.15, failures_flagged=0.7, gain=7.25, gain_share=0.147, **CAPTIONS)  # fmt: skip # noqa: E501


NOISE = ClassReport("dog", 50, accuracy=0.6, cv_score=0.52, p_value=0.3, **CAPTIONS)


SKIPPED = ClassReport("emu", 10, accuracy=0.9, skipped="1 failure, 10 are needed")


GROUPS = (GroupReport("prediction", "cat", 100, heldout_aler_minus_ber=0.4), GroupReport("label", "cat", 100, heldout_aler_minus_ber=0.13))  # fmt: skip # noqa: E501


REPORT = FailureReport(160, 0.68, (FOUND, NOISE, SKIPPED), GROUPS)


ANY = st.text(st.characters(), max_size=300)  # lone surrogates and control characters among them


def cells(row):
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_class_table__each_kind_of_class():
    head, found, noise, skipped = class_table(REPORT).splitlines()
    assert head.split("  ")[0] == "class"
    assert found.split() == [
        "cat",
        *("30.0", "%", "62.0", "%", "15.0", "%"),
        "7.2",
        *("low", "80.0", "%", "<=", "0.001", "+13.0", "points"),
        "red",
        "cat",
        "orange",
        "cat",
    ]
    assert noise.split() == [
        *("dog", "40.0", "%", "-", "-", "-", "no", "pattern", "52.0", "%", "no", "pattern", "-", "-", "-"),
    ]
    assert "skipped" in skipped
    assert "(1 failure, 10 are" in skipped


def test_class_table__columns_are_aligned_and_wide_letters_count_twice():
    lines = class_table(FailureReport(1, None, (FOUND, ClassReport("猫", 1, accuracy=0.5)))).splitlines()
    assert lines[1].index("30.0 %") == lines[2].index("50.0 %") + 1  # one letter of two columns


def test_class_table__fits_the_width():
    captions = {"hardest_captions": ("a photo of a " + "x" * 500,), "easiest_captions": ("y" * 500,)}
    long = ClassReport("n" * 10_000, 9, accuracy=0.5, p_value=0.01, pattern=True, **captions)
    table = class_table(FailureReport(9, 0.5, (long, SKIPPED)))
    assert max(map(len, table.splitlines())) in (139, 140)  # an odd rest is not shared out
    assert len(table.splitlines()) == 3


def test_class_table__control_characters_do_not_reach_the_terminal():
    assert class_table(FailureReport(1, None, (ClassReport("a\x1b[31m\nb", 1),))).count("\n") == 1
    assert "\x1b" not in class_table(FailureReport(1, None, (ClassReport("a\x1b[31mb", 1),)))


def test_rank_classes__worst_first_then_support_ungraded_last():
    names = [
        c.name
        for c in rank_classes(
            FailureReport(0, None, (ClassReport("none", 0), FOUND, NOISE, ClassReport("big", 500, accuracy=0.6)))
        )
    ]
    assert names == ["cat", "big", "dog", "none"]  # the cat has a pattern


def test_rank_classes__patterns_by_gain_then_the_others_by_error_rate():
    def found(name, gain, accuracy):
        return ClassReport(name, 100, accuracy=accuracy, pattern=gain is not None, gain=gain)

    rows = (found("bad", None, 0.2), found("a", 3.0, 0.5), found("b", 20.0, 0.9), found("c", 0.0, 0.1))
    assert [entry.name for entry in rank_classes(FailureReport(400, 0.5, rows))] == ["b", "a", "c", "bad"]


def test_rank_classes__by_the_shrunken_rate_where_there_is_one():
    few = ClassReport("few", 5, accuracy=0.0, error_rate_shrunk=0.35, error_rate_interval=(0.1, 0.7))
    many = ClassReport("many", 100, accuracy=0.4, error_rate_shrunk=0.58, error_rate_interval=(0.5, 0.7))
    report = FailureReport(105, 0.4, (few, many, ClassReport("none", 0)))
    assert [entry.name for entry in rank_classes(report)] == ["many", "few", "none"]
    head, _, first, *_ = classes_markdown(report).splitlines()
    assert cells(head)[3] == "shrunk (95 % interval)"
    assert cells(first)[2:4] == ["60.0 %", "58.0 % (50.0 to 70.0 %)"]


def test_classes_markdown__ranked_by_gain_then_by_error_with_support():
    _, rule, *rows = classes_markdown(REPORT).splitlines()
    assert set(rule) <= set("|:- ")
    assert cells(rows[1]) == [
        *("dog", "50", "40.0 %", "-", "-", "-", "-", "no pattern", "52.0 %", "no pattern", "-", "-", "-"),
    ]
    assert cells(rows[0]) == [
        "cat",
        "100",
        *("30.0 %", "62.0 %", "15.0 %", "70.0 %", "7.2 (14.7 %)", "low", "80.0 %", "<= 0.001", "+13.0 points"),
        "red cat",
        "orange cat",
    ]
    assert cells(rows[2]) == [
        "emu",
        "10",
        *("10.0 %", "-", "-", "-", "-", "too few", "-"),
        "skipped",
        "-",
        "(1 failure, 10 are needed)",
        "-",
    ]


def test_classes_markdown__limit_says_how_many_are_left_out():
    table = classes_markdown(REPORT, limit=1)
    assert "cat" in table
    assert "dog" not in table
    assert table.endswith("2 classes with less to gain are in report.json.")


def test_classes_markdown__change_since_an_earlier_report():
    then = replace(REPORT, classes=tuple(replace(entry, accuracy=0.25) for entry in REPORT.classes))
    head, _, *rows = classes_markdown(REPORT, before=then).splitlines()
    assert cells(head)[:4] == ["class", "examples", "error rate", "change"]
    assert [cells(row)[3] for row in rows] == ["-45.0 points", "-35.0 points", "-65.0 points"]
    twins = replace(REPORT, classes=(FOUND, FOUND))
    assert error_changes(twins, twins) == {}  # nothing tells which is which
    assert error_changes(REPORT, replace(REPORT, classes=())) == {}


@given(ANY)
def test_classes_markdown__hostile_names_keep_the_table_whole(name):
    rows = classes_markdown(FailureReport(1, None, (ClassReport(name, 1, skipped=name),))).splitlines()
    assert [row.count("|") for row in rows] == [14, 14, 14]


def test_tree_markdown__rules_only_with_a_pattern():
    leaves = (
        LeafReport("f1 <= 0.5", 9, 0.5, 0.1, 0.05, False),
        LeafReport("f1 > 0.5", 9, 0.6, 0.9, 0.54, True, (0.3, 0.8), 0.55, 0.85, False, 3.5),
    )
    known = {"base_error_rate": 0.2, "heldout_aler_minus_ber": 0.1, "heldout_stderr": 0.02, "leaves": leaves}
    groups = (
        GroupReport("label", "dog", 100, **known),
        GroupReport("label", "emu", 10, skipped="1 failure"),
        GroupReport("prediction", "cat", 100, pattern=True, **known),
    )
    first, *others = tree_markdown(FailureReport(1, None, (), groups)).split("### ")[1:]
    assert first.startswith("Prediction group of cat\n")
    rows = [cells(row) for row in first.splitlines() if row.startswith("| f1")]
    assert rows[0] == [
        "f1 &gt; 0.5",
        "9",
        "55.0 %",
        "30.0 to 80.0 %",
        "85.0 %",
        "no",
        "3.5",
        "60.0 %",
        "90.0 %",
        "54.0 %",
        "yes",
    ]
    assert rows[1] == ["f1 &lt;= 0.5", "9", "-", "-", "-", "-", "-", "50.0 %", "10.0 %", "5.0 %", "no"]
    assert "100 examples. No pattern: " in others[0]
    assert "held-out ALER - BER +10.0 +- 2.0 points, base error rate 20.0 %" in others[0]
    assert "10 examples. No tree: 1 failure." in others[1]
    assert not any("f1" in other for other in others)


def test_trust__a_line_a_class_most_to_gain_first_and_in_markdown_only_what_has_a_direction():
    assert [line.split(":")[0] for line in trust_lines(REPORT)] == ["cat", "dog", "emu"]
    assert trust_lines(REPORT)[1].startswith("dog: No pattern: ")
    title, _, *lines = trust_markdown(REPORT).splitlines()
    assert title == "### How far to trust it"
    assert [line.split(":")[0] for line in lines] == ["* **cat**", "* **dog**"]
    assert trust_markdown(FailureReport(9, None, (SKIPPED,))) == ""


@given(ANY)
def test_trust__hostile_names_and_captions_keep_their_line(name):
    entry = ClassReport(name, 9, cv_score=0.9, p_value=0.001, pattern=True, hardest_captions=(name,))
    report = FailureReport(9, None, (entry, ClassReport(name, 9, skipped=name)))
    assert all(line.isprintable() for line in trust_lines(report))
    markdown = trust_markdown(report)
    assert len(markdown.splitlines()) == 3
    assert not set("<>|") & set(markdown)


def test_tree_markdown__empty_without_trees():
    assert tree_markdown(replace(REPORT, groups=())) == ""


def value(name, share, low, *, attribute="tint"):
    shares = {"share_of_failures": 0.5, "share_of_flagged": low + 0.1, "share_of_least_confident": 0.25}
    return ValueReport(attribute, name, 9, 5, 4, 2, share, **shares, share_of_flagged_interval=(low, low + 0.2))


VALUES = (value("weak", 0.5, 0.51), value("none", 0.5, 0.49), value("strong", 0.1, 0.4), ValueReport("tint", "x", 1, 0))


def enriched(**options):
    return ClassReport("cat", 100, accuracy=0.7, enrichment=VALUES, **options)


def test_strongest_values__by_the_lower_end_of_the_interval_and_only_with_a_pattern():
    assert [row.value for row in strongest_values(enriched(pattern=True))] == ["strong", "weak"]
    assert [row.value for row in strongest_values(enriched(pattern=True), limit=1)] == ["strong"]
    assert strongest_values(enriched()) == []


def test_enrichment_markdown__a_row_a_value_the_worst_class_first():
    report = FailureReport(9, None, (enriched(pattern=True), ClassReport("worse", 5, accuracy=0.1, pattern=True, enrichment=VALUES[2:])))  # fmt: skip # noqa: E501
    *_, head, _, first, second, third = enrichment_markdown(report).splitlines()
    assert cells(head)[-1] == "of least confident"
    assert cells(first) == ["worse", "tint = strong", "10.0 %", "50.0 %", "50.0 %", "40.0 to 60.0 %", "25.0 %"]
    assert [cells(row)[:2] for row in (second, third)] == [["cat", "tint = strong"], ["cat", "tint = weak"]]
    assert "cat" not in enrichment_markdown(report, limit=1)
    assert enrichment_markdown(REPORT) == ""


@given(ANY, ANY)
def test_enrichment__hostile_names_keep_lines_and_tables_whole(attribute, name):
    row = value(name, 0.1, 0.4, attribute=attribute)
    report = FailureReport(9, None, (ClassReport(name, 9, pattern=True, enrichment=(row,)),))
    (line,) = enrichment_lines(report)
    assert line.isprintable()
    assert enrichment_markdown(report).count("\n") == 4
    assert enrichment_markdown(report).splitlines()[-1].count("|") == 8


def test_diagnosis__a_line_a_diagnosed_class_with_its_remedy():
    found = DiagnosisReport("shortcut", 0.8, {"shortcut": 0.8}, ("Of few.",), "interventions=[RetrainHead()]")
    report = FailureReport(
        9, 0.5, (ClassReport("a|b", 9, accuracy=0.5, diagnosis=found), ClassReport("c", 9, accuracy=0.1))
    )
    assert diagnosis_lines(report) == [
        "a|b: Kind of failure: shortcut (80.0 %). Of few. Remedy: interventions=[RetrainHead()]"
    ]
    text = diagnosis_markdown(report)
    assert text.splitlines()[0] == "### Kinds of failure and remedies"
    assert "a&#124;b" in text
    assert r"interventions=\[RetrainHead()\]" in text
    assert diagnosis_markdown(FailureReport(9, 0.5, (ClassReport("c", 9),))) == ""
