"""Two real processes see what one process sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def ranks(tmp_path: Path, devices: int, size: int) -> list[dict]:
    folder = tmp_path / f"{devices} processes, {size} examples"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LIGHTNING_FAILURES_CACHE": str(folder / "cache")}
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "ddp_fit.py"), str(folder), str(devices), str(size)]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(devices)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [157, 10])
def test_ddp__same_report_on_every_rank_as_in_one_process(tmp_path, size):
    """157 examples do not divide by 2: the sampler pads. 10 are one batch, so that one rank has hardly any."""
    (alone,) = ranks(tmp_path, 1, size)
    first, second = ranks(tmp_path, 2, size)
    assert first["report"]["examples"] == size
    assert first["report"]["coverage"] == 1.0
    for key in ("classes", "examples", "accuracy"):
        assert first["report"][key] == second["report"][key] == alone["report"][key]
    assert list(first["metrics"]) == list(second["metrics"]) == list(alone["metrics"])
    assert first["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
    assert second["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
