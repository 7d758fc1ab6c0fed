"""The callback on a few batches."""

from __future__ import annotations

from lightning_failures.doctor.dry_run import check_dry_run
from tests.doctor.contexts import only, read, statuses


def test_dry_run__ends_with_a_report_and_is_skipped_after_problems(tmp_path):
    made = read(tmp_path)
    assert only(check_dry_run(made), "ok").facts == {"examples": 32}
    made.problems.add("batches")
    assert statuses(check_dry_run(made)) == ["skipped"]
