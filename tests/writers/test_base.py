"""Writers that fail."""

from __future__ import annotations

from lightning_failures.writers import FileWriter, each_writer
from tests.writers.reports import report


def test_each_writer__one_that_fails_stops_no_other(tmp_path):
    class Full:
        def write(self, report, step):
            raise OSError("no space left")

    full = Full()
    ((writer, error),) = each_writer([full, FileWriter(tmp_path)], lambda writer: writer.write(report(), 1))
    assert writer is full
    assert "no space" in str(error)
    assert (tmp_path / "report.json").is_file()
