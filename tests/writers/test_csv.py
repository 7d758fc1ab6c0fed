"""The table of classes, read back."""

from __future__ import annotations

import csv
import json
import tracemalloc
from dataclasses import replace

import pytest

from lightning_failures.data.report import ClassReport
from lightning_failures.writers import CSVWriter, FileWriter
from tests.writers.reports import report


def test_csv_writer__one_row_a_class_and_analysis(tmp_path):
    writer = CSVWriter(tmp_path)
    for epoch, step in ((3, 250), (4, 300), (4, 300)):
        writer.write(report(epoch), step)
    with (tmp_path / "failure_classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["name"][:3]) for row in rows] == [
        (epoch, name) for epoch in ("3", "4") for name in ("cat", "dog", "../")
    ]
    assert rows[1]["hardest_caption"] == "a photo of a dog in the snow"
    assert rows[0]["aler"] == ""


def test_stage__a_test_takes_the_place_of_no_validation(tmp_path):
    for stage in ("fit", "test"):
        FileWriter(tmp_path).write(report(stage=stage), 250)
        CSVWriter(tmp_path).write(report(stage=stage), 250)
    kept = [
        json.loads((tmp_path / f"{name}epoch=0003-step=000250" / "report.json").read_text()) for name in ("", "test-")
    ]
    assert [one["stage"] for one in kept] == ["fit", "test"]
    with (tmp_path / "failure_classes.csv").open(newline="") as file:
        assert [row["stage"] for row in csv.DictReader(file)] == ["fit"] * 3 + ["test"] * 3


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t=", " =", "\uff1d"])
def test_csv_writer__no_text_of_a_user_is_a_formula(tmp_path, sign):
    words = f"{sign}HYPERLINK(0)"
    captions = {"hardest_captions": (words,), "easiest_captions": (words,)}
    entry = ClassReport(words, 40, accuracy=0.5, cv_score=0.7, pattern=True, skipped=words, **captions)
    CSVWriter(tmp_path).write(report().with_report(classes=(entry, replace(entry, name="a-b=c"))), -1)
    with (tmp_path / "failure_classes.csv").open(newline="") as file:
        guarded, harmless = csv.DictReader(file)
    for column in ("name", "hardest_caption", "easiest_caption", "skipped"):
        assert guarded[column] == f"'{words}"
    assert harmless["name"] == "a-b=c"
    assert guarded["step"] == "-1"  # a number stays one


def test_csv_writer__keeps_a_table_of_another_version(tmp_path):
    (tmp_path / "failure_classes.csv").write_text("a,b\n1,2\n")
    CSVWriter(tmp_path).write(report(), 1)
    assert (tmp_path / "failure_classes.old.csv").read_text() == "a,b\n1,2\n"
    assert len((tmp_path / "failure_classes.csv").read_text().splitlines()) > 3


def test_csv_writer__a_long_table_takes_no_memory(tmp_path):
    """A week of analyses of a thousand classes is half a million rows."""
    writer, path, short = (
        CSVWriter(tmp_path),
        tmp_path / "failure_classes.csv",
        report(0).with_report(classes=report().classes[:2]),
    )
    writer.write(short, 0)
    header, row = path.read_text().splitlines()[:2]
    path.write_text("\n".join([header, *(row.replace(",0,0,", f",{step},{step},") for step in range(20_000)), ""]))
    writer.write(short, 30_000)  # what is made once is made
    tracemalloc.start()
    writer.write(short, 40_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 20_000 + 2 * 2
    assert peak < path.stat().st_size / 2


def test_csv_writer__continues_a_damaged_table(tmp_path):
    writer, path = CSVWriter(tmp_path), tmp_path / "failure_classes.csv"
    writer.write(report(3), 250)
    path.write_bytes(path.read_bytes()[:-20_000] + b"\xff\n\n")  # half a row, and bytes that are no text
    writer.write(report(4), 300)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows][-3:] == ["4"] * 3
    assert all(None not in row.values() for row in rows)
