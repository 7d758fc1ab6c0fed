"""From grades and embeddings to a report, and the diary of failure modes over many analyses.

Files, each importing only from those above it::

    class_reports  The report of each class: the numbers of its direction, extreme examples, agreement of methods
    enrichment     Values of known attributes that are over-represented among the failures and the flagged
    slices         Error rates inside and outside of each value of known attributes
    confusions     Which classes are mistaken for which, and whether a direction explains it
    diagnosis      The kind of failure of a class: statistics, a small fitted model, reasons and the remedy
    counterfactuals  Counterfactual checks: does an image changed only in the hypothesis change the answer
    shared         The pattern that all classes share: direction, effect, captions, attributes, classes
    findings       From all results to at most three findings, ranked by what fixing them would gain
    metrics        A metric that collects the grades of all processes
    method         The protocol of a method's fit: its task and its contribution to the result
    fits           Fits of the built-in methods: failure directions and failure trees
    sparse_cards  What a person looks at to understand a feature of a sparse layer, with counterfactuals
    sparse_findings  Features behind the errors of sparse decision layers, and their section of the report
    sparse_layers  Fit of the sparse decision layers, one or a binary one for each condition
    rankings       What other methods find in the same embeddings, as a method beside failure directions
    copies         Exact copies among the analysed examples, which are one source
    result         A report with the fitted objects that it was computed from
    analyse        The whole analysis, from grades and embeddings to a result, without a Trainer, a logger or a disk
    diary          The failure diary: modes tracked from analysis to analysis, each under a stable name
"""

from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.diary import Diary, advance
from lightning_failures.analysis.rankings import BaselinesFit
from lightning_failures.analysis.result import AnalysisResult

__all__ = ["AnalysisResult", "BaselinesFit", "Diary", "advance", "analyse"]
