"""The diagnosis of the kind of failure in a real Trainer: what training examples add to it, and who gives them."""

import warnings

import pytest
from torch.utils.data import DataLoader, Subset

from lightning_failures.analysis.diagnosis import KINDS, UNSURE
from lightning_failures.data.report import FailureReport
from lightning_failures.interventions import Upweight
from tests.helpers.toy import Images, OracleClassifier, callback, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")


def without_dark_images() -> DataLoader:
    """Training images of which few are dark; in validation half are, and the model fails on these."""
    data = Images(400, seed=3)
    dark = data.dark.nonzero().flatten().tolist()
    rare = set(dark[::12])
    kept = [k for k in range(len(data)) if not data.dark[k] or k in rare]
    part = Subset(data, kept)
    part.classes = data.classes  # type: ignore[attr-defined]
    return DataLoader(part, batch_size=16)


def diagnosed(tmp_path, **options) -> FailureReport:
    failures = callback(**options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*number of training batches.*")
        trainer(tmp_path, failures, max_epochs=2).fit(OracleClassifier(), without_dark_images(), loader(400))
    return failures.last_report.report


def rare_in_training(report: FailureReport) -> float:
    """Return the mean probability of the kinds whose images training lacks."""
    found = [entry.diagnosis for entry in report.classes if entry.diagnosis is not None]
    assert len(found) >= 2
    assert all(one.kind in (*KINDS, UNSURE) for one in found)
    return sum(one.probabilities[KINDS[0]] + one.probabilities[KINDS[1]] for one in found) / len(found)


def test_diagnosis__training_examples_of_the_reference_or_of_interventions_show_what_training_lacks(tmp_path):
    alone = diagnosed(tmp_path / "validation")
    by_reference = diagnosed(tmp_path / "reference", reference="train")
    by_interventions = diagnosed(tmp_path / "interventions", interventions=[Upweight(factor=2.0)])
    assert (
        by_reference.reference
        == f"train ({len(without_dark_images().dataset)} of {len(without_dark_images().dataset)} examples)"
    )
    for report in (by_reference, by_interventions):
        assert rare_in_training(report) > 0.6
        assert rare_in_training(report) > rare_in_training(alone) + 0.1
    for entry in by_reference.classes:
        if entry.diagnosis is not None and entry.diagnosis.kind in KINDS[:2]:
            assert any("in training" in reason or "training holds" in reason for reason in entry.diagnosis.reasons)
    assert FailureReport.from_json(by_reference.to_json()) == by_reference
