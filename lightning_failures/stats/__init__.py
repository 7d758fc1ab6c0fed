"""Folds, permutation tests, intervals, and their compiled kernels; private to the package.

Files, each importing only from those above it::

    agreement         Agreement of two binary judgements beyond chance
    intervals         Three small pieces of statistics that directions, trees and reports share
    kernels           The three inner loops that numpy cannot express: compiled by numba the first time they run,
    folds             Folds and permutations that never tear a group apart
    permutation_test  The screening test: has correctness anything to do with where an example lies in the
"""
