"""The folder of a run with directions and a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.directions import fit_failure_directions
from tests.helpers.toy import Images
from tests.pools.synthetic import everything


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """What a run leaves behind: directions, and a report beside them."""
    folder = tmp_path_factory.mktemp("run")
    data = Images(400, seed=3)
    embeddings, labels = everything(data)
    fitted = fit_failure_directions(embeddings, labels, ~data.dark.numpy(), permutations=99)
    fitted.save(folder / "directions.safetensors")
    report = FailureReport(400, 0.5, tuple(ClassReport(name, 100) for name in data.classes))
    (folder / "report.json").write_text(report.to_json())
    return folder
