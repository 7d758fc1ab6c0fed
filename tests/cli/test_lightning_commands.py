"""Commands with model and data, as a person would type them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from lightning_failures.cli import main
from lightning_failures.cli.commands import COMMANDS
from lightning_failures.cli.lightning_commands import FailureCLI, FailureTrainer

ROOT = Path(__file__).parents[2]
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.init_args.train_size=300",
    "--data.init_args.val_size=300",
]


def test_subcommands__are_methods_of_the_trainer():
    """A command with model and data takes one line in the table and one method."""
    with_model = {name for name, command in COMMANDS.items() if not command.function}
    additional = set(FailureCLI.subcommands()) - set(LightningCLI.subcommands())
    assert additional == with_model - set(LightningCLI.subcommands())
    assert all(callable(getattr(FailureTrainer, name)) for name in with_model)


@pytest.mark.parametrize("config", sorted(file.name for file in (ROOT / "configs").glob("*.yaml")))
def test_configs__are_complete(config, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(ROOT / "configs" / config), "--print_config"])
    assert stop.value.code == 0
    assert "lightning_failures.FailureModes" in capsys.readouterr().out


def test_config__finds_classes_in_files_of_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "my_training", raising=False)
    (tmp_path / "my_training.py").write_text("from tests.helpers.toy import Classifier as Mine\n")
    (tmp_path / "run.yaml").write_text("model:\n  class_path: my_training.Mine\n")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "run.yaml", "--print_config"])
    assert stop.value.code == 0
    assert "  init_args:\n    classes: 4\n" in capsys.readouterr().out  # the options of the class in the file


@pytest.mark.slow
def test_fit_and_analyse__from_the_packaged_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = ["--config", str(ROOT / "configs" / "digits.yaml"), *QUIET]
    assert main(["fit", *config, "--trainer.max_epochs=1"]) == 0
    logs = tmp_path / "failures-digits" / "digits"
    fitted = json.loads((logs / "version_0" / "failures" / "report.json").read_text())
    assert fitted["examples"] == 300
    checkpoint = next((logs / "version_0" / "checkpoints").glob("last.ckpt"))
    text = (ROOT / "configs" / "digits.yaml").read_text()
    (tmp_path / "plain.yaml").write_text(text.replace("robust_encoder: embedded:digits", "pictures: false"))
    with pytest.warns(UserWarning, match="dirpath has changed"):
        status = main(["analyse", "--config=plain.yaml", *QUIET, "--ckpt_path", str(checkpoint), "--split=train"])
    assert status == 0
    shown = capsys.readouterr().out
    assert "class  error rate  of flagged" in shown
    assert shown.rstrip().splitlines()[-1].startswith("Classes with a pattern:")
    assert "Validate metric" not in shown
    analysed = json.loads((logs / "version_1" / "failures" / "report.json").read_text())
    assert analysed["examples"] == 300
    assert analysed["accuracy"] != fitted["accuracy"]


@pytest.mark.slow
def test_analyse__fails_where_the_analysis_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = (ROOT / "configs" / "digits.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(config.replace("captions: digits", "class_names: [zero, one]"))
    assert main(["analyse", "--config", "wrong.yaml", *QUIET]) == 1
    assert "has 2 names" in capsys.readouterr().err


@pytest.mark.slow
def test_verdict__from_a_config_and_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "configs" / "digits.yaml").read_text()
    without = text.replace("robust_encoder: embedded:digits", "pictures: false")
    with_them = without.replace(
        "        captions: digits\n",
        "        captions: digits\n        interventions:\n"
        "          - class_path: lightning_failures.interventions.Upweight\n            init_args: {factor: 4.0}\n",
    )
    (tmp_path / "without.yaml").write_text(without)
    (tmp_path / "with_them.yaml").write_text(with_them)
    sizes = [*QUIET[:2], "--data.init_args.train_size=600", "--data.init_args.val_size=900"]
    assert main(["fit", "--config", "without.yaml", *sizes, "--trainer.max_epochs=2"]) == 0
    (checkpoint,) = (tmp_path / "failures-digits").rglob("last.ckpt")
    options = [*sizes, "--ckpt_path", str(checkpoint), "--pairs=2", "--output=out", "--trainer.max_epochs=4"]
    capsys.readouterr()

    assert main(["verdict", "--config", "with_them.yaml", *options]) == 0
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert verdict["outcome"] in ("helped", "no evidence", "hurt")
    assert verdict["pairs"] == 2
    assert verdict["overall"]["examples"] > verdict["examples"] >= 10
    assert verdict["sentence"] in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["verdict.json"]
    assert [path.name for path in (tmp_path / "failures-digits" / "digits").iterdir()] == ["version_0"]

    (saved,) = (tmp_path / "failures-digits").rglob("config.yaml")  # as a training leaves it behind
    assert main(["verdict", "--config", str(saved), *options]) == 1
    assert "interventions" in capsys.readouterr().err


@pytest.mark.slow
def test_retrain_head__writes_a_checkpoint_that_fit_and_test_can_load(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "configs" / "digits.yaml").read_text()
    (tmp_path / "plain.yaml").write_text(text.replace("robust_encoder: embedded:digits", "pictures: false"))
    quiet = [*QUIET[:2], "--data.init_args.train_size=1200", "--data.init_args.val_size=1200"]
    assert main(["fit", "--config=plain.yaml", *quiet, "--trainer.max_epochs=3"]) == 0
    (source,) = tmp_path.rglob("last.ckpt")
    with pytest.warns(UserWarning, match="dirpath has changed"):
        assert main(["retrain-head", "--config=plain.yaml", *quiet, "--ckpt_path", str(source), "--output=new"]) == 0
    said = capsys.readouterr().out
    assert "RetrainHead after epoch 2" in said or "unchanged" in said
    before = torch.load(source, weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "new" / "retrained.ckpt", weights_only=True)["state_dict"]
    changed = {name.rpartition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert len(changed) == 1
    with pytest.warns(UserWarning, match="dirpath has changed"):
        assert main(["validate", "--config=plain.yaml", *quiet, "--ckpt_path=new/retrained.ckpt"]) == 0
