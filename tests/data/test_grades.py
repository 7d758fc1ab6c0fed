"""Grades as a notebook holds them: any form of columns is taken, whatever does not fit is an error."""

import dataclasses

import numpy as np
import pytest
import torch

from lightning_failures import Grades, analyse
from lightning_failures.data.grades import checked_grades
from lightning_failures.errors import DataError

N = 400
G = np.random.default_rng(0)
X = G.normal(size=(N, 8)).astype("float32")
LABELS = np.arange(N) % 2
FAILED = X[:, 0] + 0.5 * G.normal(size=N) < -0.5
COLUMNS = {
    "ids": np.arange(N),
    "labels": LABELS,
    "predictions": np.where(FAILED, 1 - LABELS, LABELS),
    "confidence": np.where(FAILED, 0.3, 0.9).astype("float32"),
}


def grades_of(form=np.asarray, **changes):
    return Grades(**({name: form(values) for name, values in COLUMNS.items()} | {"class_names": ("a", "b")} | changes))


EXPECTED = analyse(grades_of(torch.as_tensor), X, permutations=99).report


@pytest.mark.parametrize(
    "changes",
    [
        {"form": np.asarray},
        {"form": np.ndarray.tolist},
        {"form": lambda values: tuple(values.tolist())},
        {"form": lambda values: torch.as_tensor(values).double()},
        {"form": lambda values: values.astype("float32")},
        {"labels": torch.tensor(LABELS).bool(), "predictions": COLUMNS["predictions"].astype(bool)},
        {"labels": LABELS.astype("uint8"), "predictions": COLUMNS["predictions"].astype("int8")},
        {"class_names": ["a", "b"]},
        {"class_names": {"b": 1, "a": 0}},
        {"class_names": np.array(["a", "b"])},
        {"predictions": None, "verdicts": ~FAILED},
        {"predictions": None, "verdicts": (~FAILED).tolist()},
        {"predictions": None, "verdicts": (~FAILED).astype(float)},
    ],
)
def test_analyse__takes_any_form_of_columns(changes):
    found = analyse(grades_of(**changes), X, permutations=99).report
    assert plain(found) == plain(EXPECTED)


def plain(report):
    """Return a report without timings, diagnoses and findings: these look at predictions, which verdicts lack."""
    classes = tuple(dataclasses.replace(entry, diagnosis=None) for entry in report.classes)
    return dataclasses.replace(report, timings={}, classes=classes, findings=())


def test_analyse__embeddings_in_a_list():
    found = analyse(grades_of(), X.tolist(), permutations=99).report
    assert [entry.p_value for entry in found.classes] == [entry.p_value for entry in EXPECTED.classes]


def odd(values, value):
    return np.where(np.arange(N) == 5, value, values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a",)}, r"labels must be indices into the 1 class names, 0 ... 0, but 200 of 400 are not"),
        ({"class_names": ()}, "class_names must be a list of names"),
        ({"class_names": None}, "class_names must be a list of names"),
        ({"class_names": "ab"}, "class_names must be a list of names"),
        ({"labels": odd(LABELS, 7)}, r"row 5 has 7\. Leave out examples without a label"),
        ({"labels": odd(LABELS, -1)}, "row 5 has -1"),
        ({"labels": odd(LABELS, -100)}, "row 5 has -100"),
        ({"labels": odd(LABELS, 0.5)}, "labels must hold integers"),
        ({"labels": odd(LABELS, np.nan)}, "labels must hold integers"),
        ({"labels": np.array(["a", "b"])[LABELS]}, "labels must hold integers"),
        ({"labels": np.eye(2)[LABELS]}, r"labels must have shape \(400,\); got \(400, 2\)"),
        ({"labels": LABELS[:-1]}, r"labels must have shape \(400,\); got \(399,\)"),
        ({"predictions": odd(COLUMNS["predictions"], 9)}, "predictions must be indices into the 2 class names"),
        ({"predictions": odd(COLUMNS["predictions"], -1)}, "row 5 has -1"),
        ({"predictions": COLUMNS["predictions"][:7]}, r"predictions must have shape \(400,\)"),
        ({"predictions": None}, "need predictions, or verdicts"),
        ({"verdicts": FAILED[:3]}, r"verdicts must have shape \(400,\)"),
        ({"verdicts": odd(FAILED, 2)}, "verdicts must be boolean"),
        ({"confidence": odd(COLUMNS["confidence"], 1.5)}, "row 5 has 1.5"),
        ({"confidence": odd(COLUMNS["confidence"], np.nan)}, "row 5 has nan. Give None if they are not known"),
        ({"confidence": COLUMNS["confidence"][:3]}, "confidence must be"),
        ({"ids": [["a"]] * N}, r"ids must have shape \(N,\)"),
        ({"ids": ["a"] * N}, "ids must hold integers"),
        ({"groups": np.arange(3)}, r"groups must have shape \(400,\)"),
    ],
)
def test_analyse__refuses_what_does_not_fit(changes, message):
    with pytest.raises(DataError, match=message):
        analyse(grades_of(**changes), X, permutations=99)


def test_checked_grades__types():
    checked = checked_grades(grades_of(np.ndarray.tolist, groups=["x", "y"] * (N // 2), confidence=[1.002] * N))
    assert [getattr(checked, name).dtype for name in ("ids", "labels", "predictions", "groups")] == [torch.int64] * 4
    assert checked.confidence.dtype == torch.float32
    assert checked.groups.tolist()[:3] == [0, 1, 0]
    assert checked.class_names == ("a", "b")


def test_correct__of_a_verdict_and_of_a_prediction():
    columns = {"ids": torch.arange(2), "labels": torch.zeros(2).long(), "class_names": ("a", "b"), "confidence": None}
    assert Grades(predictions=torch.tensor([0, 1]), **columns).failed.tolist() == [False, True]
    judged = Grades(predictions=torch.tensor([0, 1]), verdicts=torch.tensor([False, True]), **columns)
    assert judged.failed.tolist() == [True, False]
    with pytest.raises(DataError, match="need predictions, or verdicts"):
        assert Grades(predictions=None, **columns).failed is None


def test_checked_grades__no_rows():
    empty = checked_grades(Grades([], [], [], [], ("a",)))
    assert len(empty) == 0
    assert analyse(Grades([], [], [], [], ("a",)), np.empty((0, 3)), permutations=9).report.accuracy is None
