"""Folds, permutation tests, intervals, agreement, and their compiled kernels; private to the package.

Files, each importing only from those above it::

    agreement         Agreement of two binary judgements of the same examples
    intervals         Benjamini-Hochberg, Holm, Wilson's and Student's intervals, and the sign test
    rates             Rates of examples that may share sources, and the exact test that one rate exceeds another
    shrinkage         Rates of classes with few examples, shrunk towards the mean of all classes
    kernels           Inner loops that NumPy cannot express, compiled by numba
    folds             Folds and permutations that keep groups whole
    sequential        Sequential Monte Carlo p-values, which stop drawing where nothing is to be found
    permutation_test  The screening test of a class: is correctness independent of the embedding?
"""
