"""From grades and embeddings to a report, and the diary of failure modes over many analyses.

Files, each importing only from those above it::

    class_reports  The report of each class: the numbers of its direction, extreme examples, agreement of methods
    enrichment     Values of known attributes that are over-represented among the failures and the flagged
    metrics        The metric that collects the grades of all processes
    method         The fit of a method: its task, its contribution, and the protocol
    fits           The fits of the built-in methods: failure directions and failure trees
    result         A report with the live objects that it was computed from
    analyse        The whole analysis, from grades and embeddings to a result, without a Trainer, a logger or a disk
    diary          The failure diary: modes followed from analysis to analysis, each under a stable name
"""

from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.diary import Diary, advance
from lightning_failures.analysis.result import AnalysisResult

__all__ = ["AnalysisResult", "Diary", "advance", "analyse"]
