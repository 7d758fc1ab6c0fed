"""The last words of a training."""

from __future__ import annotations

import logging

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.trainer.closing import say_findings


def said(caplog, result, folder) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        say_findings(result, folder)
    return caplog.text.splitlines()


def test_say_findings__page_findings_and_patterns_in_three_lines(caplog, tmp_path):
    classes = (ClassReport("cat", 90, accuracy=0.6, pattern=True, gain=9.0), ClassReport("dog", 90, accuracy=1.0))
    result = AnalysisResult(FailureReport(180, 0.8, classes))
    (tmp_path / "report.json").write_text("{}")
    lines = said(caplog, result, tmp_path)
    assert len(lines) == 3
    assert lines[0].endswith(f"the report is {tmp_path / 'report.json'}")
    assert lines[1].startswith("Nothing found.")
    assert lines[2] == "Classes with a pattern: cat (1 of 2)"
    (tmp_path / "report.html").write_text("")
    assert said(caplog, result, tmp_path)[0].endswith("report.html")


def test_say_findings__nothing_without_an_analysis(caplog, tmp_path):
    assert said(caplog, None, tmp_path) == []
    assert said(caplog, AnalysisResult(FailureReport(0, None, ())), None) == []
