"""Report files, read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_failures.data.example_table import ANALYSIS_TABLE_FILE, MAX_TABLES
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.writers import FileWriter
from lightning_failures.writers.files import file_name
from tests.writers.analyses import table
from tests.writers.reports import pictures, report


@pytest.mark.slow
def test_file_writer__keeps_every_analysis_and_the_last(tmp_path):
    writer = FileWriter(tmp_path / "failures")
    writer.write(report(3), 250)
    writer.show(report(3), pictures(), 250)
    writer.write(report(4), 300)
    first = tmp_path / "failures" / "epoch=0003-step=000250"
    assert json.loads((first / "report.json").read_text())["epoch"] == 3
    assert json.loads((tmp_path / "failures" / "report.json").read_text()) == report(4).to_dict()
    written = sorted((first / "images").iterdir())
    assert len(written) == 3
    assert np.array(Image.open(first / "images" / "classes-dog.png"))[50, 50].tolist() == [200, 0, 0]
    markdown = (first / "report.md").read_text()
    assert "feature 17" in markdown
    assert "<script>" not in markdown


def test_file_writer__directions_of_the_last_report(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 4))
    fitted = fit_failure_directions(x, np.zeros(60, dtype=int), x[:, 0] > 0, permutations=9)
    writer = FileWriter(tmp_path)
    writer.write(report(3, directions=fitted), 250)
    stored = FailureDirections.load(tmp_path / "directions.safetensors")
    assert torch.equal(stored.weight, fitted.weight)
    writer.write(report(4), 300)  # grading only: those of another epoch would be taken for its own
    assert not (tmp_path / "directions.safetensors").exists()


def test_file_writer__hostile_names_stay_inside(tmp_path):
    FileWriter(tmp_path / "a" / "failures").write(report(), 0)
    FileWriter(tmp_path / "a" / "failures").show(report(), pictures(), 0)
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and (tmp_path / "a" / "failures") not in p.parents]
    assert outside == []


@pytest.mark.parametrize("text", ["..", "/etc/passwd", "", "a" * 10_000, "con\x00", "🙂"])
def test_file_name__is_one_plain_component(text):
    name = file_name(text)
    assert Path(name).name == name
    assert name not in {"", ".", ".."}
    assert len(name) < 100


def test_file_name__differs_where_texts_differ():
    texts = ["a/b", "a-b", "a b", "A/B", "a//b"]
    assert len({file_name(text) for text in texts}) == len(texts)


def test_file_writer__the_first_and_the_latest_analyses_keep_their_tables(tmp_path):
    writer = FileWriter(tmp_path)
    for epoch in range(MAX_TABLES + 3):
        writer.write(report(epoch, table=table()), 10 * epoch)
    kept = sorted(path.parent.name for path in tmp_path.glob(f"*/{ANALYSIS_TABLE_FILE}"))
    assert [int(name[6:10]) for name in kept] == [0, *range(4, MAX_TABLES + 3)]
