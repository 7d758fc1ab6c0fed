"""Runs by the names of their files."""

from __future__ import annotations

from lightning_failures.core.run_paths import no_single_run, own_report, runs_below


def test_runs__of_a_folder_and_below(tmp_path):
    assert own_report(tmp_path) is None
    assert runs_below(tmp_path) == []
    place = tmp_path / "version_0" / "failures"
    (place / "epoch=0001-step=000012").mkdir(parents=True)
    for folder in (place, place / "epoch=0001-step=000012"):
        (folder / "report.json").write_text("{}")
    assert runs_below(tmp_path) == [place / "report.json"]
    assert no_single_run(tmp_path, runs_below(tmp_path)) is None
    for path in (place.parent, place, place / "report.json"):
        assert own_report(path) == place / "report.json"


def test_no_single_run__names_at_most_nine(tmp_path):
    text = no_single_run(tmp_path, [tmp_path / f"run{k}" / "report.json" for k in range(20)])
    assert "There are 20 runs" in text
    assert "run8" in text
    assert "run9" not in text
