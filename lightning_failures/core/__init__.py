"""Foundations that every room builds on; private to the package.

Files, each importing only from those above it::

    types           Array types shared by annotations
    arrays          Convert and check tensors and arrays of callers, once, before the mathematics sees them
    precision       Products in the precision of their numbers, whatever the training has chosen for its own
    atomic          Files that appear whole or not at all
    locks           Locks between processes: one writer at a time in a file, one run at a time in a folder
    run_paths       Where the reports of runs are, found by names alone
    safetensors_io  Safetensors files whose every byte is verified
    hashing         Hashes of integers and of rows that are the same on every machine and in every version
    budget          Limits of time and memory, and the size of the sample that fits them
    home            A home folder for a user who has none, and where and how large the cache of embeddings is
    rng             Restore random number generators after a block, also after an exception
    eval_mode       Put a module into eval mode for a block, and restore the mode of every submodule
    serialization   Convert frozen records to JSON values and back, checked against type hints
    text            Make texts and numbers fit for display
    threads         Thread limits of the linear algebra libraries
    moved           Import paths of the version before the rooms, which resolve with a DeprecationWarning
"""
