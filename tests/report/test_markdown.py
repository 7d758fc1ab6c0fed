"""One analysis as a Markdown document."""

from __future__ import annotations

from dataclasses import replace

from lightning_failures.data.findings import Finding, FindingPart
from lightning_failures.data.report import ClassReport, FailureReport, ModeReport
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.report.findings import finding_sentence, findings_lines
from lightning_failures.report.markdown import report_markdown, report_sections

CAT = ClassReport("cat", 40, accuracy=0.7, base_error_rate=0.3, cv_score=0.8, p_value=0.001, pattern=True)
TREE = GroupReport("label", "cat", 40, 0.3, pattern=True, leaves=(LeafReport("feature 3 > 1", 9, 0.9, 0.7, 0.6, True),))
REPORT = FailureReport(
    40,
    0.7,
    (CAT,),
    (TREE,),
    modes=(ModeReport("cat 1", "cat", "new", 0, size=9),),
    notes=("A sample of 5 %.",),
    interventions=({"kind": "Upweight", "epoch": 1, "classes": []},),
    epoch=2,
    global_step=30,
)


def test_report_sections__only_those_with_content():
    assert list(report_sections(REPORT)) == ["notes", "trust", "diary", "interventions", "rules"]
    assert report_sections(FailureReport(0, None, ())) == {}


def test_report_markdown__title_table_sections_and_images_in_this_order():
    text = report_markdown(REPORT, images=[("images/classes-cat.png", "cat|<b>")])
    parts = [
        "# Epoch 2, step 30: 40 examples, accuracy 70.0 %",
        "### Findings",
        "| class |",
        *report_sections(REPORT).values(),
    ]
    places = [text.index(part) for part in [*parts, "![cat&#124;&lt;b&gt;](images/classes-cat.png)"]]
    assert places == sorted(places)
    assert text.endswith(")\n")


def test_report_markdown__changes_since_the_analysis_before():
    before = replace(REPORT, classes=(replace(CAT, accuracy=0.6),))
    assert "-10.0 points" in report_markdown(REPORT, before=before)
    assert "| change |" in report_markdown(REPORT, before=before)
    assert "| change |" not in report_markdown(REPORT)


def test_report_sections__the_findings_are_those_of_every_place():
    part = FindingPart("cat", "night", 20, 12, 0.6, 0.1, "dog", 0.9)
    found = Finding("attribute", "light", "night", (part,), failures=12, share_of_failures=0.8)
    report = replace(REPORT, findings=(found,))
    text = report_sections(report)["findings"]
    assert "wrong 60.0 % of the time, its other images 10.0 %" in text
    assert text in report_markdown(report)
    assert finding_sentence(found, ["cat"]) in findings_lines(report)[0]
