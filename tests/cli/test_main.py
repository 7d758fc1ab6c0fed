"""Commands as a person would type them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lightning_failures.cli import main
from lightning_failures.cli.demo import attach_truth
from lightning_failures.cli.main import COMMANDS
from lightning_failures.data.report import ClassReport, FailureReport

ROOT = Path(__file__).parents[2]
QUIET = [
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.init_args.train_size=300",
    "--data.init_args.val_size=300",
]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


def test_help__names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_unknown_command__is_told(capsys):
    assert main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["lightning-failures"])


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help__of_each_command(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_report__of_a_run(tmp_path, capsys):
    entry = ClassReport("cat", 9, accuracy=0.5, cv_score=0.9, p_value=0.001, pattern=True)
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "report.json").write_text(FailureReport(9, 0.5, (entry,)).to_json())
    assert main(["report", str(tmp_path)]) == 0
    assert "cat" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{", "[]", '{"classes": 3}'])
def test_report__bad_file_is_one_clear_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 1
    assert "report" in capsys.readouterr().err


def test_attach_truth__changes_nothing_else():
    report = FailureReport(2, 0.5, (ClassReport("a", 1), ClassReport("b", 1)))
    truth = [{"usual_tint": "red", "unusual_tint": "blue"}, None]
    told = attach_truth(report, truth)
    assert [entry["truth"] for entry in told["classes"]] == truth
    without = [entry | {"truth": None} for entry in told["classes"]]
    assert without == report["classes"]


@pytest.mark.parametrize("config", ["digits.yaml", "digits_interventions.yaml", "cifar10.yaml"])
def test_configs__are_complete(config, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(ROOT / "configs" / config), "--print_config"])
    assert stop.value.code == 0
    assert "lightning_failures.FailureModes" in capsys.readouterr().out


@pytest.mark.slow
def test_fit_and_analyse__from_the_packaged_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ["--config", str(ROOT / "configs" / "digits.yaml"), *QUIET]
    assert main(["fit", *config, "--trainer.max_epochs=1"]) == 0
    logs = tmp_path / "failures-digits" / "digits"
    fitted = json.loads((logs / "version_0" / "failures" / "report.json").read_text())
    assert fitted["examples"] == 300
    checkpoint = next((logs / "version_0" / "checkpoints").glob("last.ckpt"))
    with pytest.warns(UserWarning, match="dirpath has changed"):
        status = main(["analyse", *config, "--ckpt_path", str(checkpoint), "--split=train"])
    assert status == 0
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
    plain = text.replace("robust_encoder: embedded:digits", "pictures: false")
    acting = plain.replace(
        "        captions: digits\n",
        "        captions: digits\n        interventions:\n"
        "          - class_path: lightning_failures.interventions.Upweight\n            init_args: {factor: 4.0}\n",
    )
    (tmp_path / "plain.yaml").write_text(plain)
    (tmp_path / "acting.yaml").write_text(acting)
    sizes = [*QUIET[:2], "--data.init_args.train_size=600", "--data.init_args.val_size=900"]
    assert main(["fit", "--config", "plain.yaml", *sizes, "--trainer.max_epochs=2"]) == 0
    (checkpoint,) = (tmp_path / "failures-digits").rglob("last.ckpt")
    options = [*sizes, "--ckpt_path", str(checkpoint), "--pairs=2", "--output=out"]
    capsys.readouterr()

    assert main(["verdict", "--config", "acting.yaml", *options]) == 0
    told = json.loads((tmp_path / "out" / "verdict.json").read_text())
    assert told["outcome"] in ("helped", "no evidence", "hurt")
    assert told["pairs"] == 2
    assert told["overall"]["examples"] > told["examples"] >= 10
    assert told["sentence"] in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["verdict.json"]
    assert [path.name for path in (tmp_path / "failures-digits" / "digits").iterdir()] == ["version_0"]

    (saved,) = (tmp_path / "failures-digits").rglob("config.yaml")  # as a training leaves it behind
    assert main(["verdict", "--config", str(saved), *options]) == 1
    assert "interventions" in capsys.readouterr().err


@pytest.mark.slow
def test_demo__table_report_and_truth(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "out"), "--epochs", "4", "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    assert "hardest caption" in shown
    assert re.search(r"tensorboard --logdir \S*out", shown)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["epoch"] == 3
    assert f"Report:       {tmp_path / 'out' / 'report.html'}" in shown
    (run,) = (tmp_path / "out").rglob("failures")
    page = (tmp_path / "out" / "report.html").read_bytes()
    assert (run / "report.html").read_bytes() == page
    assert len(page) < 5_000_000
    assert json.loads((run / "report.json").read_text()) == report
    planted = [entry for entry in report["classes"] if entry["truth"]]
    assert len(planted) == 8
    hits = [entry["truth"]["unusual_tint"] in " ".join(entry["hardest_captions"][:1]) for entry in planted]
    assert sum(hits) >= 4
    enriched = [
        row["value"] == entry["truth"]["unusual_tint"] and row["share_of_flagged_interval"][0] > row["share"]
        for entry in planted
        for row in entry["enrichment"]
        if row["attribute"] == "tint"
    ]
    assert sum(enriched) >= 4
    assert re.search(r"tint = \w+ is [01]\.\d\d", shown)
    assert list((tmp_path / "out").rglob("images/classes-*.png"))
    assert list((tmp_path / "out").rglob("events.out.tfevents.*"))
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == page
    assert main(["diff", str(tmp_path / "out"), str(run)]) == 0
    assert "0 fixed, 0 new" in capsys.readouterr().out
