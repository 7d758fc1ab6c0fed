"""The records that the stages of an analysis exchange: graded examples as input, reports as output.

Files, each importing only from those above it::

    digests        Digests of images, which identify examples whatever their index
    class_names    Lists of class names in the forms that datasets and users give them
    grades         Records of one validation batch and of the grades of all examples
    joining        Join two looks at data: which example of one is which example of the other
    grading        Compute the grades of a batch from outputs and labels
    held_out       Parts of a validation set that no method was fitted on
    grouping       Ways to divide graded examples into groups: by label, prediction, confused pair, value, cluster
    members        The examples of each class or group, and access to their embeddings
    partition      Division of an analysis between processes: the classes that each process owns
    example_table  One row per graded example: label, prediction, confidence, decision value, leaves
    records        Records that parts of a report have in common, and that of the pattern which all classes share
    evidence       The evidence for a word of a caption, a record of the report
    findings       What is wrong with a model, ranked by what fixing it would gain: records of the report
    pin_check      The record of a check: does a pinned slice still hold with another model?
    tree_report    The records of failure trees in a report
    report         The content of ``report.json`` as frozen records
    study_scores   The scores of a study with people, and what a run remembers of a study
"""

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import BatchRecord, Grades
from lightning_failures.data.grading import grade_batch
from lightning_failures.data.report import ClassReport, FailureReport, ModeReport
from lightning_failures.data.tree_report import GroupReport

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
