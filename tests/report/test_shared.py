"""The pattern that all classes share as text, whatever users name."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.data.records import ClassHold, SharedPattern, ValueReport
from lightning_failures.data.report import FailureReport
from lightning_failures.report.markdown import report_sections
from lightning_failures.report.sentences import shared_sentence
from lightning_failures.report.shared import shared_lines, shared_markdown, shared_values

NIGHT = ValueReport(
    "time", "night", 200, 90, 120, share=0.2, share_of_failures=0.4, share_of_flagged=0.6,
    share_of_flagged_interval=(0.5, 0.7),
)  # fmt: skip
DAY = replace(NIGHT, value="day", share=0.8, share_of_flagged=0.4, share_of_flagged_interval=(0.3, 0.5))
PATTERN = SharedPattern(
    examples=1000, failures=250, p_value=0.001, pattern=True, cv_score=0.61, cv_score_stderr=0.02, strength="clear",
    effect=0.25, effect_interval=(0.17, 0.33), flagged=200, flagged_error_rate=0.45, unflagged_error_rate=0.2,
    failures_flagged=0.36, gain=40.0, classes=(ClassHold("cat", 0.8, 0.001, True), ClassHold("dog", 0.5, 0.4)),
    too_few=3, hardest_captions=("blurry", "at night"), easiest_captions=("on grass",), caption_p_value=0.002,
    values=(NIGHT, DAY),
)  # fmt: skip
ANY = st.text(st.characters(), max_size=300)


def a_report(pattern):
    return FailureReport(1000, 0.75, (), shared=pattern)


def test_sentence__in_full():
    assert shared_sentence(PATTERN) == (
        "Clear pattern: 45.0 % of the 200 flagged examples fail, 20.0 % of the others in their classes (a"
        " difference of 17.0"
        " to 33.0 points); the flagged hold 36.0 % of the 250 failures. Directions of other classes separate"
        " them with a"
        ' balanced accuracy of 61.0 % +- 2.0 % (p <= 0.001). The caption "blurry" is a hypothesis: captions'
        " rarely fit this"
        " well by chance (p = 0.002). It holds in 1 of the 2 classes with enough images to tell; 3 classes have too few"
        " images to tell."
    )


def test_sentence__of_what_is_missing():
    assert shared_sentence(SharedPattern(skipped="too few")) == "Skipped: too few."
    assert shared_sentence(replace(PATTERN, p_value=None, pattern=False)).startswith("Not tested")
    assert "250 failures are consistent with chance" in shared_sentence(replace(PATTERN, p_value=0.4, pattern=False))
    assert shared_sentence(replace(PATTERN, pattern=False)).startswith(
        "No shared pattern: classes fail in different ways"
    )
    assert "untested hypothesis" in shared_sentence(replace(PATTERN, caption_p_value=None))
    assert "weak hypothesis" in shared_sentence(replace(PATTERN, caption_p_value=0.4))
    assert shared_sentence(replace(PATTERN, classes=(), hardest_captions=())).endswith(
        "(p <= 0.001). Single classes: 3 classes have too few images to tell."
    )


def test_lines__with_the_values_that_stand_out():
    assert shared_values(PATTERN) == [NIGHT]
    assert shared_lines(a_report(PATTERN))[1:] == [
        "time = night: 60.0 % (50.0 to 70.0 %) of the flagged examples, 20.0 % of all"
    ]
    assert shared_lines(a_report(None)) == shared_lines(a_report(SharedPattern(skipped="too few"))) == []
    assert len(shared_lines(a_report(replace(PATTERN, p_value=0.3, pattern=False)))) == 1


def test_markdown__says_captions_classes_and_values():
    text = shared_markdown(a_report(PATTERN))
    assert "Captions of failures: blurry, at night. Of successes: on grass." in text
    assert "cat (0.80)" in text
    assert "dog (" not in text
    assert "| time = night | 20.0 % | 40.0 % | 60.0 % | 50.0 to 70.0 % |" in text
    assert "time = day" not in text
    assert report_sections(a_report(PATTERN))["shared"] == text
    assert "shared" not in report_sections(a_report(None))


@given(ANY, ANY, ANY)
def test_text__of_any_names(caption, name, value):
    pattern = replace(
        PATTERN, hardest_captions=(caption,), classes=(ClassHold(name, 0.9, 0.1, True),),
        values=(replace(NIGHT, attribute=name, value=value),),
    )  # fmt: skip
    assert len(shared_lines(a_report(pattern))) == 2
    assert all("\n" not in line for line in shared_lines(a_report(pattern)))
    assert shared_markdown(a_report(pattern)).count("\n\n### ") == 0
