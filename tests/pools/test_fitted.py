"""The directions of a run, read from its files."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.directions import fit_failure_directions
from lightning_failures.errors import ConfigurationError
from lightning_failures.pools.fitted import load_fitted
from lightning_failures.pools.shards import directions_digest

DIM, CLASSES = 6, 4


def fitted(seed: int = 0):
    """Directions of three of four classes: the last one has too few failures."""
    rng = np.random.default_rng(seed)
    x, labels = rng.normal(size=(400, DIM)), np.arange(400) % CLASSES
    correct = x[:, 0] + 0.3 * rng.normal(size=400) > 0
    correct[labels == CLASSES - 1] = True
    return fit_failure_directions(x, labels, correct, permutations=99)


def test_load_fitted__beside_a_report(tmp_path):
    directions = fitted()
    directions.save(tmp_path / "run" / "failures" / "directions.safetensors")
    bare = load_fitted(tmp_path / "run" / "failures" / "directions.safetensors")
    assert (bare.class_names, directions_digest(bare.directions)) == (None, directions_digest(directions))
    report = FailureReport(9, 0.5, (ClassReport("cat", 9),))
    (tmp_path / "run" / "failures" / "report.json").write_text(report.to_json())
    for place in (tmp_path / "run", tmp_path / "run" / "failures"):
        assert load_fitted(place).class_names == ("cat",)


@pytest.mark.parametrize("content", [None, b"", b"\x08\0\0\0\0\0\0\0{}      "])
def test_load_fitted__nothing_there(tmp_path, content):
    if content is not None:
        (tmp_path / "directions.safetensors").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"directions\.safetensors"):
        load_fitted(tmp_path)
