"""Findings in words, for every kind; why nothing was found, and what it would take."""

from __future__ import annotations

import dataclasses

import pytest

from lightning_failures.data.findings import Finding, FindingPart, Mistake
from lightning_failures.data.report import ClassReport, FailureReport, SliceReport
from lightning_failures.report.findings import (
    confidence_sentence,
    finding_sentence,
    findings_lines,
    findings_markdown,
    next_step,
    nothing_found,
    pattern_line,
)

FOUR = FindingPart("four", "cyan", 100, 70, 0.7, 0.05, "nine", 0.8)
TWO = FindingPart("two", "red", 100, 50, 0.5, 0.04, "seven", 0.4)
TINT = Finding(
    "attribute", "tint", None, (FOUR, TWO), False, 200, 120, 0.6, 0.6, (0.5, 0.7), 0.045, (0.03, 0.06), (0.45, 0.66),
    111.0, 0.001, None, "high", (Mistake("four", "nine", 56, 0.8),), "shortcut", 0.9, "interventions=[RetrainHead()]",
)  # fmt: skip
NAMES = ("four", "two", "six")


def test_finding_sentence__one_class():
    alone = dataclasses.replace(TINT, parts=(FOUR,))
    sentence = finding_sentence(alone, NAMES)
    assert sentence == (
        "Images of four with tint cyan are wrong 70.0 % of the time, its other images 5.0 %; they are mostly read as"
        " nine."
    )
    assert finding_sentence(dataclasses.replace(alone, kind="caption"), NAMES).startswith(
        'Images of four like "cyan" are'
    )
    rule = dataclasses.replace(alone, kind="rule", parts=(dataclasses.replace(FOUR, words="feature 3 > 1"),))
    assert finding_sentence(rule, NAMES).startswith("Images of four with feature 3 > 1 are wrong")
    assert "share a look without a name" in finding_sentence(dataclasses.replace(alone, kind="look"), NAMES)


def test_finding_sentence__values_that_differ_between_classes():
    sentence = finding_sentence(TINT, NAMES)
    assert sentence.endswith("2 of 3 classes have such a tint; the others: two (red).")


def test_finding_sentence__a_value_of_several_classes_and_of_all():
    several = dataclasses.replace(TINT, words="cyan", parts=(FOUR, dataclasses.replace(TWO, words="cyan")))
    assert finding_sentence(several, NAMES) == (
        "In 2 classes (four, two), images with tint cyan are wrong 60.0 % of the time, other images of the same classes"
        " 4.5 %. Most often read: four as nine (56)."
    )
    assert finding_sentence(dataclasses.replace(several, every_class=True), NAMES).startswith(
        "In all classes, images with"
    )


def test_finding_sentence__conditions_and_labels():
    part = FindingPart("no edema", "lateral", 100, 40, 0.4, 0.1, "edema", 1.0)
    found = Finding("attribute", "view", "lateral", (part,))
    assert finding_sentence(found, ("no edema", "edema")) == (
        "Images without edema with view lateral are wrong 40.0 % of the time, the others 10.0 %; they are read as"
        " edema."
    )
    noise = dataclasses.replace(TINT, kind="labels", failures=20, parts=(FOUR,))
    assert finding_sentence(noise) == (
        "The labels of 20 failures look wrong: without them the error rate of four is 4.5 % instead of 60.0 %."
    )


def test_confidence_sentence__has_the_statistics():
    assert confidence_sentence(TINT) == (
        "The error rates differ by 45.0 to 66.0 points (95 % interval). Chance of such a pattern in each class:"
        " p <= 0.001. 120 failures."
    )


def test_next_step__the_remedy_or_a_look_at_the_images():
    step = next_step(TINT)
    assert (step.code, step.review) == ("interventions=[RetrainHead()]", False)
    unsure = next_step(dataclasses.replace(TINT, cause="unsure", remedy=None), "logs/version_3")
    assert "--directions logs/version_3 --shop" in unsure.code
    assert unsure.words.startswith("Look at the images")
    assert next_step(dataclasses.replace(TINT, cause="label noise")).review


def entry(name="cat", examples=100, accuracy=0.7, **options):
    return ClassReport(name, examples, accuracy=accuracy, **options)


FEW = entry("dog", accuracy=0.98, skipped="2 failures")


@pytest.mark.parametrize(
    ("classes", "why", "needed"),
    [
        ((entry(examples=0, accuracy=None),), "No example was graded", "labels"),
        ((entry(accuracy=1.0),), "right on all", "more"),
        ((entry(),), "only graded", "encoder="),
        ((entry(accuracy=0.97, skipped="3 failures"), FEW), "Too few failures: 5 in 2", "About 800"),
        ((entry(accuracy=0.03, skipped="3 successes"),), "Too few successes: 3 in 1 class;", "About 334"),
        ((entry(accuracy=0.05, skipped="5 successes"), FEW), "Too few failures or too few successes: 2", "More"),
        ((entry(accuracy=0.0, skipped="0 successes"),), "No class could be tested", "reasons"),
        ((entry(skipped="its fit failed"), FEW), "Too few failures: 2 in 1 class;", "About 1000"),
        ((entry(p_value=0.4), entry(accuracy=0.03)), "1 of 2 classes have fewer than 10 successes", "More"),
        ((entry(p_value=0.4), FEW), "1 class are consistent with chance. 1 of 2", "More"),
        ((entry(skipped="its fit failed"),), "No class could be tested", "reasons"),
        ((entry(slices=(SliceReport("tint", "red", "cat"),)),), "no value of a known attribute", "More"),
    ],
)  # fmt: skip
def test_nothing_found__says_why_and_what_it_would_take(classes, why, needed):
    report = FailureReport(200 if len(classes) == 2 else 100, None, classes)
    found = nothing_found(report)
    assert why in found.why
    assert needed in found.needed
    assert findings_lines(report)[0].startswith("Nothing found. ")
    assert "Nothing found." in findings_markdown(report)


def test_findings_lines__and_markdown_hold_the_same_numbers():
    report = FailureReport(900, 0.8, tuple(entry(name) for name in NAMES), findings=(TINT,))
    (line,) = findings_lines(report, "logs/version_3")
    text = findings_markdown(report)
    for part in ("70.0 %", "5.0 %", "120 failures, 60.0 % of all", "how sure: high", "RetrainHead()"):
        assert part in line
        assert part in text
    assert line.startswith("1. Images of four")


def test_pattern_line__names_the_classes():
    classes = tuple(entry(f"c{k}", pattern=k != 1, gain=float(k)) for k in range(4))
    assert (
        pattern_line(FailureReport(9, None, classes), limit=2) == "Classes with a pattern: c3, c2 and 1 more (3 of 4)"
    )


def test_findings__hostile_names_are_escaped():
    nasty = dataclasses.replace(FOUR, class_name="<b>|*x*\n", words="[a](http://evil)")
    report = FailureReport(9, None, (entry("<b>|*x*\n"),), findings=(dataclasses.replace(TINT, parts=(nasty,)),))
    assert "<b>" not in findings_markdown(report)
    assert "\n" not in findings_lines(report)[0]


def test_lines__of_a_damaged_confidence_can_be_printed():
    found = Finding("caption", words="red", parts=(FindingPart("cat", "red", 9, 8, 0.8, 0.2),), confidence="bad\udcff")
    report = FailureReport(83, 0.7, (ClassReport("cat", 40, accuracy=0.6),), findings=(found,))
    "\n".join(findings_lines(report)).encode("utf-8", "strict")
