"""``lightning-failures doctor`` as people and machines call it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from lightning_failures.doctor import CHECKS
from lightning_failures.doctor.findings import WIDTH
from tests.doctor.contexts import DIGITS, ROOT


@pytest.mark.slow
def test_doctor__of_the_packaged_config(command, capsys, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert command() == 0
    shown = capsys.readouterr().out
    assert all(f" {check} " in shown for check in CHECKS)
    assert max(map(len, shown.splitlines())) <= WIDTH
    assert "Ready. " in shown
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]

    assert command("--json=true", encoder="embedded:digts") == 1
    output = json.loads(capsys.readouterr().out)
    assert not output["ready"]
    assert output["findings"][1] | {"facts": {}, "remedy": ""} == {
        "check": "encoder",
        "status": "problem",
        "message": output["findings"][1]["message"],
        "remedy": "",
        "facts": {},
    }
    assert "Did you mean embedded:digits" in output["findings"][1]["message"]


@pytest.mark.slow
def test_doctor__as_a_person_would_run_it(tmp_path):
    arguments = ["--config", str(DIGITS), "--trainer.accelerator=cuda", "--trainer.devices=64"]
    done = subprocess.run(
        [sys.executable, "-c", "from lightning_failures.cli.main import main; exit(main())", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "--trainer.accelerator=cpu" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_doctor__an_untrained_clip_is_not_ready(command, clip, capsys, tmp_path):
    from lightning_failures.bundled.models import CLIP_FOLDER

    twin = tmp_path / "twin"
    shutil.copytree(CLIP_FOLDER, twin)
    state = safetensors.torch.load_file(twin / "open_clip_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: 0.05 * torch.randn(value.shape, generator=generator).to(value.dtype) if value.ndim > 1 else value
        for name, value in state.items()
    }
    safetensors.torch.save_file(noise, twin / "open_clip_model.safetensors")
    assert command("--trainer.devices=3", "--trainer.strategy=ddp", encoder=f"local-dir:{twin}") == 1
    shown = capsys.readouterr().out
    assert "3 processes (1 node(s)): the sampler repeats 2 of 400 examples" in " ".join(shown.split())
    assert "70% of one of the first two is needed" in " ".join(shown.split())
    assert "Not ready, with 1 problem: known pictures." in shown
    assert "skipped until the problems above are solved" in " ".join(shown.split())
