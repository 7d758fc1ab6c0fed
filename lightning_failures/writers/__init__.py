"""Writers: report files, which are always written, and the pages of each logger of the Trainer.

A writer for another logger derives from :class:`Writer` and is registered in one line, from anywhere::

    register_writer("MyLogger", lambda logger, folder: MyWriter(logger, folder))

Files, each importing only from those above it::

    base         The protocol of a writer, the limits that it declares, and what several writers share
    files        Report files on disk, written whatever loggers there are
    class_table  The tables of classes and of examples as rows of plain values
    layout       The charts of TensorBoard's "Custom Scalars" page for the keys under ``failures/``
    projector    Points for TensorBoard's projector: embeddings, thumbnails and metadata of some examples
    csv          CSV: one row a class and analysis, in a table next to Lightning's ``metrics.csv``
    labelling    Images to label, in files that labelling tools read: CSV, Label Studio, FiftyOne
    export       The findings of a run in the files of other tools: CSV, JSON, FiftyOne, Label Studio, cleanlab
    tensorboard  TensorBoard: scalar charts, ranked table, sentences, pictures and projector points
    wandb        Weights & Biases: two bounded tables an analysis, pictures, and the report as an artifact
    mlflow       MLflow: two bounded tables, the report as text, pictures, and the files of the run as artifacts
    generic      Any other logger that has log_image or log_table
    registry     The writer of each logger class, those of other packages included
"""

from __future__ import annotations

from lightning_failures.writers.base import Writer, WriterLimits, each_writer
from lightning_failures.writers.csv import CSVWriter
from lightning_failures.writers.files import FileWriter, write_report
from lightning_failures.writers.generic import GenericWriter
from lightning_failures.writers.mlflow import MLFlowWriter
from lightning_failures.writers.registry import register_writer, writers_for
from lightning_failures.writers.tensorboard import TensorBoardWriter
from lightning_failures.writers.wandb import WandbWriter

__all__ = [
    "CSVWriter",
    "FileWriter",
    "GenericWriter",
    "MLFlowWriter",
    "TensorBoardWriter",
    "WandbWriter",
    "Writer",
    "WriterLimits",
    "each_writer",
    "register_writer",
    "write_report",
    "writers_for",
]
