"""The command ``transfer``, and its table in ``diff``: two models on the same images."""

from __future__ import annotations

import json

import pytest

from lightning_failures.cli import main
from tests.helpers.shaded import config


def test_transfer__directions_of_a_run_on_a_model_with_and_without_its_failures(tmp_path, capsys):
    path = config(tmp_path)
    assert main(["validate", "--config", path]) == 0
    run = str(tmp_path / "version_0")
    capsys.readouterr()
    assert main(["transfer", run, "--config", path, "--json=true"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["classes"]) == 4
    for one in found["classes"]:
        assert one["pattern"]
        assert one["auroc"] == pytest.approx(one["own_auroc"])  # the same model
        assert one["auroc"] > 0.8
        assert one["flagged"]["rate"] > 0.6 > 0.2 > one["unflagged"]["rate"]
        low, high = one["flagged"]["interval"]
        assert low < one["flagged"]["rate"] < high

    assert main(["transfer", run, "--config", path, "--model.init_args.fixed=true"]) == 0
    said = capsys.readouterr().out
    assert "first run flags" in said
    assert "class 0" in said

    assert main(["diff", run, str(tmp_path / "version_1")]) == 0
    assert "Mean AUROC where the first run found a pattern" in capsys.readouterr().out
    assert main(["transfer", str(tmp_path / "none"), "--config", path]) == 1
