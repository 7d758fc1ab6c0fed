"""Pools of any size: their embeddings in files of fixed blocks of examples, and what a stream over the files finds.

Files, each importing only from those above it::

    fitted    The directions of a run, as its files tell of them
    manifest  What a folder of shards holds: of which pool, through which encoder, cut into which blocks
    shards    The file of one block of a pool: written once, whole or not at all, and verified whenever it is read
    source    The user's pool as blocks of consecutive examples: their loader, cut so that whole blocks go to one
    job       What one process does for a pool: from a batch to rows, from rows to a shard on disk
    merging   One stream over all shards of a pool: what each class has, and its hardest examples. One shard is in
    results   What is found in a pool, as files and in words
    embedder  The module that ``Trainer.predict`` runs to embed a pool: batches in, shards on disk out
"""

from lightning_failures.pools.manifest import PoolManifest
from lightning_failures.pools.merging import PoolSummary, merge_shards
from lightning_failures.pools.shards import PoolShard, read_pool_shard, scored, write_pool_shard

__all__ = [
    "PoolManifest",
    "PoolShard",
    "PoolSummary",
    "merge_shards",
    "read_pool_shard",
    "scored",
    "write_pool_shard",
]
