"""Failure directions (Jain et al., ICLR 2023): one failure SVM per class in the space of an image encoder.

Files, each importing only from those above it::

    decoding     From a failure direction to the embedding that a decoder turns into an image, without any caption
    matching     Whether two analyses have found the same failure mode, and whether it has grown between them
    standardize  phi: how embeddings are standardised before a direction is sought in them
    svm          The linear SVM of one class, and the choice of its C
    additional   Further failure directions of a class: where its failures lie at two ends, each end gets a
    fit          Failure directions: for each class a linear SVM in an embedding space that separates right from
    null_scores  Which CV scores chance gives: the same folds, grid and choice of C under permuted correctness
"""

from lightning_failures.directions.decoding import decoding_targets
from lightning_failures.directions.fit import FailureDirections, fit_failure_directions
from lightning_failures.directions.standardize import standardize

__all__ = ["FailureDirections", "decoding_targets", "fit_failure_directions", "standardize"]
