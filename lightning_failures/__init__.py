"""Failure modes of vision classifiers, found while they train."""
