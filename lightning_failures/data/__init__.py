"""What is passed between the stages: graded examples in, reports out.

Files, each importing only from those above it::

    grades         The records that enter the analysis: what a validation batch holds, and right or wrong for every
    grading        Outputs and batch to grades: which examples are right, and how much the model believed in the
    members        Which examples belong to a class, and which embeddings to an example
    partition      How several processes share one analysis out: each fits the classes that it owns, and all get
    example_table  What one analysis knows of every example, as one table: the record that reports and comparisons
    report         The frozen records of a report: what one analysis found, in the form of ``report.json``
"""

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import BatchRecord, Grades
from lightning_failures.data.grading import grade_batch
from lightning_failures.data.report import ClassReport, FailureReport, GroupReport, ModeReport

__all__ = [
    "BatchRecord",
    "ClassReport",
    "ExampleTable",
    "FailureReport",
    "Grades",
    "GroupReport",
    "ModeReport",
    "grade_batch",
]
