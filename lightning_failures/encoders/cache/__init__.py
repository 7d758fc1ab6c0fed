"""Embeddings on disk, so that an image is encoded once.

Files, each importing only from those above it::

    shard_file  The file format: an index in memory and embeddings on disk, verified when opened
    index       One index of the keys of all open shards
    store       The cache folder and the embeddings of one encoder, keyed by content, with a size limit
"""
