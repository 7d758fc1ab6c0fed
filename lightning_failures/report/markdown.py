"""One analysis as a Markdown document, the ``report.md`` in its folder."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_failures.core.text import escape_markdown, number
from lightning_failures.data.report import FailureReport
from lightning_failures.report.diary import diary_markdown
from lightning_failures.report.interventions import interventions_markdown
from lightning_failures.report.tables import (
    enrichment_markdown,
    markdown_table,
    notes_markdown,
    tree_markdown,
    trust_markdown,
)


def report_markdown(
    report: FailureReport, *, before: FailureReport | None = None, images: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the whole report as a Markdown document: title, tables, sentences and images.

    Args:
        report: One analysis.
        before: The analysis before it, for the changes of error rates.
        images: (relative path, caption) of each image.

    >>> report_markdown(FailureReport(9, 0.5, (), notes=("A sample.",), epoch=1, global_step=20)).splitlines()[0]
    '# Epoch 1, step 20: 9 examples, accuracy 0.500'
    """
    accuracy = number(report.accuracy, ".3f")
    parts = [
        f"# Epoch {report.epoch}, step {report.global_step}: {report.examples} examples, accuracy {accuracy}",
        markdown_table(report, before=before),
        notes_markdown(report),
        trust_markdown(report),
        diary_markdown(report),
        enrichment_markdown(report),
        interventions_markdown(report),
        tree_markdown(report),
        *(f"![{escape_markdown(caption)}]({path})" for path, caption in images),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
