"""Failure directions (Jain et al., ICLR 2023): one failure SVM per class in the space of an image encoder.

Files, each importing only from those above it::

    decoding     Embeddings along a failure direction that a decoder turns into images, without any caption
    matching     The same failure mode in two analyses: similarity, one-to-one matching, change of its failures
    standardize  phi: the standardization of embeddings before a direction is fitted
    criterion    The cross-validation criterion: its name, chance level, score and standard error
    effects      Effect of a pattern: error rates of flagged and unflagged examples, and how many failures are flagged
    probe        The label probe: whether embeddings support the label of an example, cross-fitted
    svm          The linear SVM of one class and the selection of its C
    additional   Additional failure directions of a class whose failures lie at two ends of the embedding
    result       The fitted directions: decision values, the file format, and joining the classes of several processes
    one_class    The directions of one class: its folds, the examples to fit on, the search, and the tests
    shared       One failure direction that all classes share, fitted and tested within classes
    fit          Fitting all classes: phi, labels in doubt, and the result
    null_scores  Null distribution of CV scores: the same fit under permuted correctness
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_failures.core.moved import old_names
from lightning_failures.directions.decoding import decoding_targets
from lightning_failures.directions.fit import fit_failure_directions
from lightning_failures.directions.result import FailureDirections
from lightning_failures.directions.standardize import standardize

__all__ = ["FailureDirections", "decoding_targets", "fit_failure_directions", "standardize"]

if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)
