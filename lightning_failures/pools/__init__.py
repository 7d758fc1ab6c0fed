"""Pools of any size: embed them in shards of consecutive examples, and find their hardest examples in one stream.

Files, each importing only from those above it::

    fitted    The directions of a run, read from its files
    manifest  What a folder of shards holds: which pool, which encoder, which blocks of ids
    shards    The file of one block of a pool: written once, verified whenever it is read
    source    The user's loader, cut into blocks of consecutive examples that are divided among processes
    rows      The examples of one batch that can be embedded, and why the others cannot
    probe     A look at some examples of a pool before it is embedded
    job       The work of one process: from batches to rows, from rows to shards on disk
    merging   One stream over all shards: statistics and hardest examples of each class, one shard in memory
    shopping  The shopping list: which images of a pool to label, so that the patterns of a run can be fixed
    results   What was found in a pool, as JSON files and as a printed summary
    embedder  The module that ``Trainer.predict`` runs to embed a pool
"""

from lightning_failures.pools.manifest import PoolManifest
from lightning_failures.pools.merging import PoolSummary, merge_shards
from lightning_failures.pools.shards import PoolShard, read_pool_shard, score_shard, write_pool_shard

__all__ = [
    "PoolManifest",
    "PoolShard",
    "PoolSummary",
    "merge_shards",
    "read_pool_shard",
    "score_shard",
    "write_pool_shard",
]
