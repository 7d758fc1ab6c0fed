"""The command ``export``: what it writes and says."""

from __future__ import annotations

from lightning_failures.cli import main
from tests.helpers.exported import image_folder, saved_run


def test_export__says_what_was_written_and_how_to_open_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = str(saved_run(tmp_path / "run", image_folder(tmp_path / "data"), thumbnails=3))
    assert main(["export", run, "--to", "csv"]) == 0
    shown = capsys.readouterr().out
    assert "7 examples (6 failed, 5 flagged), 2 labels to check, 4 slices, 0 pins." in shown
    assert "Written: failures-export/slices.csv" in shown
    assert main(["export", run, "--to", "fiftyone", "--output", "out"]) == 0
    shown = capsys.readouterr().out
    assert "3 examples have an image, 3 of them as thumbnails" in shown
    assert "4 without an image are left out" in shown
    assert 'fiftyone.Dataset.from_dir("out/fiftyone"' in shown
    assert main(["export", run, "--to", "label-studio", "--images", "data", "--all"]) == 0
    assert "20 examples have an image." in capsys.readouterr().out


def test_export__errors_are_one_line(tmp_path, capsys):
    run = str(saved_run(tmp_path / "run", None))
    (tmp_path / "taken").write_text("")
    for options in (
        [str(tmp_path / "missing"), "--to", "csv"],
        [run, "--to", "fiftyone"],
        [run, "--to", "csv", "--images", "nowhere"],
        [run, "--to", "csv", "--pins", "nowhere"],
        [run, "--to", "csv", "--output", str(tmp_path / "taken")],
    ):
        assert main(["export", *options]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lightning-failures: ")
