"""The last words of a training: where the report is, what was found, and which classes have a pattern."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.run_paths import REPORT_FILE
from lightning_failures.report.findings import closing_lines
from lightning_failures.report.run_folder import HTML_FILE


def say_findings(result: AnalysisResult | None, folder: Path | None) -> None:
    """Say in three lines what the last analysis found; nothing without one.

    Args:
        result: The last analysis.
        folder: The folder of its files.
    """
    if result is None or folder is None:
        return
    page = next((folder / name for name in (HTML_FILE, REPORT_FILE) if (folder / name).is_file()), None)
    rank_zero_info("\n".join(closing_lines(result.report, None if page is None else str(page))))
