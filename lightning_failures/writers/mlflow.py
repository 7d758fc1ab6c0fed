"""MLflow: two bounded tables, the report as text, pictures by step, and the files of the run as artifacts."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.serialization import read_json
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import DataError
from lightning_failures.report.gallery import Gallery
from lightning_failures.report.markdown import report_markdown
from lightning_failures.writers.base import Writer, WriterLimits, tag_prefix
from lightning_failures.writers.class_table import (
    EXAMPLE_COLUMNS,
    MAX_EXAMPLES,
    MAX_IMAGES,
    MAX_ROWS,
    class_columns,
    class_rows,
    example_rows_of,
    pictures_of,
    utf8,
    without_details,
)
from lightning_failures.writers.files import file_name, run_files

_TABLES_TAG = "mlflow.loggedArtifacts"  # by which MLflow's pages know that an artifact is a table


@dataclass(frozen=True)
class MLFlowWriter(Writer):
    """Writes through the client of an MLFlowLogger. Scalars are logged by the callback itself, as metrics.

    Tables have the format of ``mlflow.log_table``, so that ``mlflow.load_table`` reads them; they are written without
    pandas, which ``mlflow-skinny`` does not install.

    Attributes:
        logger: An MLFlowLogger of either namespace.
        folder: The folder of the report files, which are written before pictures are shown.
    """

    logger: Any
    folder: Path
    _previous: dict[str, FailureReport] = field(default_factory=dict, repr=False, compare=False)  # by tag prefix
    _rows: dict[str, list[list[Any]]] = field(default_factory=dict, repr=False, compare=False)  # by tag prefix

    def write(self, result: AnalysisResult, step: int) -> None:
        """Log the rows of the classes, added to those of earlier analyses, and the report as Markdown."""
        report = result.report
        prefix, before = tag_prefix(report), self._previous.get(tag_prefix(report))
        columns = class_columns(report)
        if prefix not in self._rows:
            self._rows[prefix] = self._stored_rows(f"{prefix}/table.json", columns)
        rows = class_rows(report, before, MAX_ROWS)
        self._rows[prefix] = [*self._rows[prefix], *rows][-MAX_ROWS:]
        self._log_table(f"{prefix}/table.json", columns, self._rows[prefix])
        text = report_markdown(report, before=before)
        self.logger.experiment.log_text(self.logger.run_id, utf8(text), f"{prefix}/report.md")
        self._previous[prefix] = without_details(report)

    def show(self, result: AnalysisResult, gallery: Gallery, step: int) -> None:
        """Log the pictures, the table of examples and the files of the run, the page among them."""
        prefix, client = tag_prefix(result.report), self.logger.experiment
        for picture, image in pictures_of(gallery):
            client.log_image(self.logger.run_id, image, key=f"{prefix}/{file_name(picture.tag)}", step=step)
        if rows := [row for _, row in example_rows_of(result, gallery)]:
            self._log_table(f"{prefix}/examples.json", [*EXAMPLE_COLUMNS], rows)
        self._upload(prefix)

    def write_verdict(self, result: AnalysisResult, step: int) -> None:
        """Log the report again, with the verdict, and upload the files of the run again."""
        prefix = tag_prefix(result.report)
        self.logger.experiment.log_text(self.logger.run_id, utf8(report_markdown(result.report)), f"{prefix}/report.md")
        self._upload(prefix)

    def limits(self) -> WriterLimits:
        """Return what one analysis may log."""
        return WriterLimits(
            "MLflow", pictures=MAX_IMAGES, classes=MAX_ROWS, examples=MAX_EXAMPLES, examples_in="a table"
        )

    def _log_table(self, path: str, columns: list[str], rows: list[list[Any]]) -> None:
        """Log a table in the format of ``mlflow.log_table`` and list it among the tables of the run."""
        client, run_id = self.logger.experiment, self.logger.run_id
        client.log_text(run_id, json.dumps({"columns": columns, "data": rows}), path)
        listed = json.loads(client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
        entry = {"path": path, "type": "table"}
        if entry not in listed:
            client.set_tag(run_id, _TABLES_TAG, json.dumps([*listed, entry]))

    def _stored_rows(self, path: str, columns: list[str]) -> list[list[Any]]:
        """Return the rows that an interrupted training logged; none if the table is missing or has other columns."""
        client, run_id = self.logger.experiment, self.logger.run_id
        if all(one.path != path for one in client.list_artifacts(run_id, str(Path(path).parent))):
            return []
        with tempfile.TemporaryDirectory() as folder:
            stored = Path(client.download_artifacts(run_id, path, folder)).read_bytes()
        try:
            table = read_json(stored)
        except DataError:
            return []
        return list(table["data"]) if isinstance(table, dict) and table.get("columns") == columns else []

    def _upload(self, prefix: str) -> None:
        """Upload the files of the run."""
        for path in run_files(self.folder):
            self.logger.experiment.log_artifact(self.logger.run_id, str(path), prefix)
