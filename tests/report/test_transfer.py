"""What one run found on the failures of another: by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.data.tree_report import GroupReport, LeafReport
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.report.run_folder import Run
from lightning_failures.report.transfer import transfer, transfer_text


def run(failed, values, *, ids=None, entries=(), groups=None) -> Run:
    """A run on one class, whose digests are 100 + the number of the image."""
    n = len(failed)
    images = np.arange(n) if ids is None else np.asarray(ids)
    none = torch.full((n,), -1)
    table = ExampleTable(
        ids=torch.arange(n), labels=torch.zeros(n).long(), predictions=torch.tensor(failed).long(), confidence=None,
        values=torch.tensor(values, dtype=torch.float32), label_leaf=none, prediction_leaf=none,
        class_names=("cat", "dog"), digests=torch.from_numpy(100 + images), indexed=True,
        groups=None if groups is None else torch.tensor(groups),
    )  # fmt: skip
    return Run(Path("run"), FailureReport(examples=n, accuracy=None, classes=tuple(entries)), (), table=table)


CAT = ClassReport("cat", 6, pattern=True, hardest_captions=("a dark cat",), nearest_hardest_ids=(0, 1))


def test_transfer__values_of_the_first_failures_of_the_second():
    first = run([1, 1, 0, 0, 0, 0], [-2, -1, -0.5, 0.5, 1, 2], entries=[CAT])
    second = run(
        [0, 1, 0, 1, 0, 0], [1, -1, 1, -1, 1, 1], ids=[5, 0, 4, 1, 3, 2],
        entries=[replace(CAT, hardest_captions=("a red cat",), nearest_hardest_ids=(1, 2))],
    )  # fmt: skip
    (one,) = transfer(first, second).classes
    assert (one.examples, one.failures, one.auroc, one.own_auroc) == (6, 2, 1.0, 1.0)
    assert (one.flagged.examples, one.flagged.rate) == (3, pytest.approx(2 / 3))
    assert one.unflagged.rate == 0
    assert (one.caption, one.near_caption.rate) == ("a dark cat", 1.0)
    assert (one.own_caption, one.near_own_caption.rate) == ("a red cat", 0.5)
    text = transfer_text(transfer(first, second))
    assert 'cat: "a dark cat"' in text
    assert "Mean AUROC where the first run found a pattern: 1.00, own 1.00." in text


def test_transfer__sources_widen_the_interval():
    failed, values = [1, 1, 1, 0, 0, 0] * 2, [-1.0] * 12
    alone = transfer(run(failed, values), run(failed, values)).classes[0].flagged.interval
    joined = run(failed, values, groups=[0, 0, 0, 1, 1, 1] * 2)
    together = transfer(joined, run(failed, values)).classes[0].flagged.interval
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


def test_transfer__needs_the_same_images_and_a_table():
    first = run([1, 0], [-1, 1])
    with pytest.raises(DataError, match="no example in common"):
        transfer(first, run([1, 0], [-1, 1], ids=[8, 9]))
    with pytest.raises(ConfigurationError, match="no table of examples"):
        transfer(first, Run(Path("x"), first.report, ()))


def test_transfer__by_the_most_important_rule_that_held():
    first = run([1, 1, 0, 0, 0, 0], [-2, -1, -0.5, 0.5, 1, 2], entries=[CAT])
    leaves = (
        LeafReport("feature 3 > 0.2", 2, 1.0, 1.0, 1.0, valid=True),
        LeafReport("feature 3 <= 0.2", 4, 0.0, 0.0, 0.0, valid=False),
    )
    group = GroupReport("label", "cat", 6, pattern=True, leaves=leaves)
    table = replace(first.table, label_leaf=torch.tensor([0, 0, 1, 1, 1, 1]))
    first = replace(first, report=replace(first.report, groups=(group,)), table=table)
    (one,) = transfer(first, run([1, 0, 0, 0, 0, 1], [0.0] * 6)).classes
    assert one.rule == "feature 3 > 0.2"
    assert (one.by_rule.examples, one.by_rule.rate) == (2, 0.5)
