"""Pin a slice of a run and check it on other models, as a person would type the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_failures.cli import main
from lightning_failures.regression import Pin
from lightning_failures.report.run_folder import open_run
from tests.helpers.shaded import config


@pytest.fixture(scope="module")
def cured(tmp_path_factory) -> Path:
    """The folder of a run whose patterns are found in three analyses and cured in three more."""
    folder = tmp_path_factory.mktemp("cured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lightning-failures"])
        assert main(["fit", "--config", config(folder, epochs=6), "--model.init_args.fixed_from=3"]) == 0
    return folder


def check(folder: Path, *options: str) -> int:
    return main(["check-pins", str(folder / "pins"), "--config", config(folder), *options])


def test_pin_and_check__a_cured_mode_that_reopens(cured, capsys):
    run, pins = str(cured / "version_0"), cured / "pins"
    assert {mode.status for mode in open_run(run).report.modes} == {"cured"}
    assert main(["pin", run, "--class", "class 1", "--output", str(pins)]) == 1
    assert "Pin one of its failure modes: --mode 'class 1 1'." in capsys.readouterr().err
    assert main(["pin", run, "--class", "class 1", "--mode", "class 1 1", "--output", str(pins)]) == 0
    said = capsys.readouterr().out
    assert "the images of the failure mode class 1 1: 0 of " in said
    (path,) = pins.iterdir()
    assert str(path) in said
    assert Pin.load(path).level_of == "slice"

    assert check(cured) == 1
    said = capsys.readouterr().out
    assert "reopened" in said.splitlines()[1]
    assert "class 1 1 has reopened: " in said
    assert check(cured, "--model.init_args.fixed=true", "--json=true") == 0
    (one,) = json.loads(capsys.readouterr().out)["pins"]
    assert (one["status"], one["failures"], one["new"], one["gone"]) == ("holds", 0, 0, 0)
    assert one["joined"] == len(Pin.load(path).digests)

    # other images: none is found again, but the direction knows the dark ones
    assert check(cured, "--data.init_args.seed=8", "--json=true") == 1
    (one,) = json.loads(capsys.readouterr().out)["pins"]
    assert (one["status"], one["joined"]) == ("reopened", 0)
    assert one["new"] > 30
    assert one["error_rate"] > 0.7


def test_check__faults_are_named_with_the_remedy(cured, tmp_path, capsys):
    assert main(["check-pins", str(tmp_path), "--config", config(cured)]) == 1
    assert "holds no *.pin files. Write a pin with: lightning-failures pin" in capsys.readouterr().err
    (tmp_path / "x.pin").write_text("no pin")
    assert main(["check-pins", str(tmp_path), "--config", config(cured)]) == 1
    assert "x.pin is no pin, or is damaged" in capsys.readouterr().err


def test_check__pins_of_another_encoder_are_refused(cured, capsys):
    path, run = str(cured / "a.pin"), str(cured / "version_0")
    assert main(["pin", run, "--class", "class 2", "--mode", "class 2 1", "--output", path]) == 0
    assert main(["check-pins", path, "--config", config(cured, encoder="others")]) == 1
    said = capsys.readouterr().err
    assert "needs FailureModes(encoder=...) to be colours (tests-colours), but it is others" in said
    assert "pin the slice again" in said


def test_pin__names_do_not_leave_the_folder(cured, tmp_path, capsys):
    """Names of classes and modes are the user's texts."""
    run = str(cured / "version_0")
    for options in (["--class", "../x"], ["--class", "class 1", "--mode", "../../x"]):
        assert main(["pin", run, *options, "--output", str(tmp_path / "in")]) == 1
    report = open_run(run).report
    assert "classes: class 0, class 1" in capsys.readouterr().err
    folder = cured / "version_0" / "failures"
    copy = tmp_path / "copy" / "failures"
    copy.mkdir(parents=True)
    text = (folder / "report.json").read_text().replace('"class 1"', '"../../evil"')
    (copy / "report.json").write_text(text)
    for name in ("examples.safetensors", "directions.safetensors"):
        (copy / name).write_bytes((folder / name).read_bytes())
    here = copy / f"epoch={report.epoch:04d}-step={report.global_step:06d}"
    here.mkdir()
    (here / "modes.safetensors").write_bytes((folder / here.name / "modes.safetensors").read_bytes())
    options = ["--class", "../../evil", "--mode", "class 1 1", "--output", str(tmp_path / "in")]
    assert main(["pin", str(tmp_path / "copy"), *options]) == 0
    assert [path.parent for path in tmp_path.rglob("*.pin")] == [tmp_path / "in"]


def test_check__help_names_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["check-pins", "--help"])
    assert stop.value.code == 0
    assert "check-pins" in capsys.readouterr().out
