"""One analysis as Markdown: the sections that dashboards show, and the whole document, the report.md in its folder."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_failures.core.text import escape_markdown, percent
from lightning_failures.data.report import FailureReport
from lightning_failures.report.confusions import confusions_markdown
from lightning_failures.report.diary import diary_markdown
from lightning_failures.report.findings import findings_markdown
from lightning_failures.report.interventions import interventions_markdown
from lightning_failures.report.shared import shared_markdown
from lightning_failures.report.slices import slices_markdown
from lightning_failures.report.sparse import sparse_markdown
from lightning_failures.report.tables import (
    checks_markdown,
    classes_markdown,
    diagnosis_markdown,
    enrichment_markdown,
    notes_markdown,
    tree_markdown,
    trust_markdown,
)


def report_sections(report: FailureReport) -> dict[str, str]:
    """Return the sections of a report besides its table of classes, as Markdown by name; empty sections are left out.

    >>> report_sections(FailureReport(0, None, (), notes=("A sample.",)))
    {'notes': '* A sample.'}
    """
    sections = {
        "findings": findings_markdown(report) if report.findings else "",
        "notes": notes_markdown(report),
        "trust": trust_markdown(report),
        "diagnosis": diagnosis_markdown(report),
        "shared": shared_markdown(report),
        "diary": diary_markdown(report),
        "confusions": confusions_markdown(report),
        "slices": slices_markdown(report),
        "sparse": sparse_markdown(report),
        "enrichment": enrichment_markdown(report),
        "interventions": interventions_markdown(report),
        "rules": tree_markdown(report),
        "checks": checks_markdown(report),
    }
    return {name: text for name, text in sections.items() if text}


def report_markdown(
    report: FailureReport, *, before: FailureReport | None = None, images: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the whole report as a Markdown document: title, table of classes, sections and images.

    Args:
        report: One analysis.
        before: The analysis before it, for the changes of error rates.
        images: (relative path, caption) of each image.

    >>> report_markdown(FailureReport(9, 0.5, (), epoch=1, global_step=20)).splitlines()[0]
    '# Epoch 1, step 20: 9 examples, accuracy 50.0 %'
    """
    accuracy = percent(report.accuracy)
    parts = [
        f"# Epoch {report.epoch}, step {report.global_step}: {report.examples} examples, accuracy {accuracy}",
        *([] if report.findings else [findings_markdown(report)]),
        classes_markdown(report, before=before),
        *report_sections(report).values(),
        *(f"![{escape_markdown(caption)}]({path})" for path, caption in images),
    ]
    return "\n\n".join(parts) + "\n"
