"""The directions of a run, read from its files."""

from __future__ import annotations

import pytest

from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.errors import ConfigurationError
from lightning_failures.pools.fitted import load_fitted
from lightning_failures.pools.shards import directions_digest
from tests.pools.synthetic import fitted


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
