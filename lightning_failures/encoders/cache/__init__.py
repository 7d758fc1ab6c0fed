"""Embeddings that were computed once, on disk.

Files, each importing only from those above it::

    shard_file  The file format of the embedding cache: an index in memory and embeddings on disk, verified when
    store       Embeddings on disk, keyed by content: an image is embedded once, and a changed image or encoder is
"""
