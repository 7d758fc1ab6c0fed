"""Which examples of a pool are worth adding.

Files, each importing only from those above it::

    candidates       The candidates that a stream leaves behind: columns of equal length, ranked class by class
    near_duplicates  Near-duplicates: images whose embeddings point the same way
    picker           Pick examples of every class out of a pool of any size, as it streams by
"""
