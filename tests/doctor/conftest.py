"""The command on the packaged configuration, and the packaged CLIP."""

from __future__ import annotations

import pytest

from lightning_failures.cli import main
from tests.doctor.contexts import DIGITS


@pytest.fixture
def command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-failures"])
    small = ["--data.init_args.train_size=200", "--data.init_args.val_size=400"]

    def run(*arguments: str, encoder: str = "embedded:digits") -> int:
        config = tmp_path / "config.yaml"
        config.write_text(DIGITS.read_text().replace(" encoder: embedded:digits", f" encoder: {encoder}"))
        return main(["doctor", "--config", str(config), *small, *arguments])

    return run


@pytest.fixture(scope="module")
def clip():
    from lightning_failures.encoders import load_encoder

    return load_encoder("embedded:digits")
