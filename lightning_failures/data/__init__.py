"""What is passed between the stages: graded examples in, reports out.

Files, each importing only from those above it::

    grades         One validation batch, and the grade of every example: right or wrong, with confidence
    grading        Grade a batch: from outputs and labels to right or wrong
    held_out       Parts of a validation set to which nothing was fitted
    grouping       Ways to divide graded examples into groups: by label, by prediction
    members        The examples of a class or group, and the embeddings of examples
    partition      The classes that each process of an analysis owns
    example_table  One row per graded example: label, prediction, confidence, decision value, leaves
    report         The content of ``report.json`` as frozen records
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
