"""From grades and embeddings to a report, and from analysis to analysis in the diary.

Files, each importing only from those above it::

    class_reports  What the report says of each class: its direction in numbers, the examples at its ends, whether
    diary          The failure diary: modes that are followed from analysis to analysis, each with a name that stays
    enrichment     Which values of known attributes are over-represented among the failures, and among what the
    metrics        The definitions as ``torchmetrics`` metrics, and the one that collects grades
    analyse        From grades and embeddings to a report: the whole analysis, without a Trainer, a logger or a disk
"""

from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.diary import Diary, advance

__all__ = ["Diary", "advance", "analyse"]
