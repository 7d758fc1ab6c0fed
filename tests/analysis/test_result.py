"""The result of an analysis answers the keys and attributes of its report."""

import copy
import pickle

import pytest

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.data.report import ClassReport, FailureReport

REPORT = FailureReport(2, 0.5, (ClassReport("cat", 2),), summary={"accuracy": 0.5})


def test_result__answers_keys_and_attributes_of_the_report():
    result = AnalysisResult(REPORT)
    assert result["classes"][0]["name"] == "cat"
    assert result.summary is REPORT.summary
    assert result.to_json() == REPORT.to_json()
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = result.no_such_field


def test_with_report__replaces_fields_of_a_new_result():
    result = AnalysisResult(REPORT, fitted={"age": 3})
    changed = result.with_report(epoch=4, stage="fit")
    assert (changed.epoch, changed.stage, changed.fitted) == (4, "fit", {"age": 3})
    assert result.epoch is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_result__can_be_copied(copied):
    assert copied(AnalysisResult(REPORT)) == AnalysisResult(REPORT)
