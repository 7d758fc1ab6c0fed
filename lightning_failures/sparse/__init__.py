"""Sparse decision layers (Wong et al., ICML 2021): the last layer refitted so that every class rests on few features.

Files, each importing only from those above it::

    blocks   Standardized features as blocks of rows, in memory or read again in every pass
    penalty  The elastic net penalty: its value, its optimality conditions and its screening rule
    softmax  Multinomial cross-entropy of a linear layer: loss, gradient and curvature
    solver   The solver of the path: proximal Newton steps on Gram matrices of working sets
    path     The path of sparse layers over lambda
"""
