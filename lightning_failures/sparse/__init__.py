"""Sparse decision layers (Wong et al., ICML 2021): the last layer refitted so that every class rests on few features.

Files, each importing only from those above it::

    blocks   Standardized features as blocks of rows, in memory or read again in every pass
    penalty  The elastic net penalty: its value, its optimality conditions and its screening rule
    softmax  Multinomial cross-entropy of a linear layer: loss, gradient and curvature
    solver   The solver of the path: proximal Newton steps on Gram matrices of working sets
    path     The path of sparse layers over lambda
    layer    The sparsest layer within a drop of the best held-out accuracy, and its file format
    debug    The problematic feature of each error beside controls, accuracy without features, and pairs of classes
    counterfactuals  What happens to correct predictions when a single feature is raised or zeroed
"""

from __future__ import annotations

from lightning_failures.sparse.counterfactuals import FeatureCounterfactual, feature_counterfactual
from lightning_failures.sparse.debug import (
    ClassPairs,
    FeatureEffects,
    ProblematicFeatures,
    RightReasons,
    class_pairs,
    feature_effects,
    problematic_features,
    right_reasons,
)
from lightning_failures.sparse.layer import AccuracyCurve, SparseLayer, fit_sparse_layer
from lightning_failures.sparse.path import SparsePath, fit_sparse_path

__all__ = [
    "AccuracyCurve",
    "ClassPairs",
    "FeatureCounterfactual",
    "FeatureEffects",
    "ProblematicFeatures",
    "RightReasons",
    "SparseLayer",
    "SparsePath",
    "class_pairs",
    "feature_counterfactual",
    "feature_effects",
    "fit_sparse_layer",
    "fit_sparse_path",
    "problematic_features",
    "right_reasons",
]
