"""Foundations that every room builds on; private to the package.

Files, each importing only from those above it::

    types          Array types that annotations share
    arrays         The border between callers' tensors and arrays and the mathematics: converted and checked once,
    atomic         Files that appear whole or not at all
    safetensors_io  Safetensors files whose every byte is verified
    hashing        A hash of integers that is the same on every machine and in every version
    rng            Random numbers that are given back, whatever happens
    serialization  From frozen records to plain values, as JSON holds them, and back: every value is checked
    text           Texts and numbers made fit to be shown
    threads        Threads of the linear algebra libraries
    budget         Limits of time and memory: how they are said, and how an analysis shrinks to keep them
"""
