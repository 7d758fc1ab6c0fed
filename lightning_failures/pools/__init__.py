"""Pools of any size: their embeddings in files of fixed blocks of examples, and what a stream over the files finds."""

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
