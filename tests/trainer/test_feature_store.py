"""Penultimate features on disk: of one set of weights, apart from the embeddings."""

from __future__ import annotations

import torch
from torch import nn

from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.trainer.feature_store import FeatureStore, StoredFeatures


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_store__half_precision_on_disk_that_another_process_finds(tmp_path):
    net, keys, rows = model(), torch.arange(8).reshape(4, 2), torch.rand(4, 6)
    store = FeatureStore(tmp_path).of_weights(net, "1")
    store.put(keys, rows)
    store.flush()
    assert sum(path.stat().st_size for path in (tmp_path / "penultimate").rglob("*.safetensors")) < 4 * 6 * 2 + 1000
    found = FeatureStore(tmp_path).of_weights(net, "1")
    assert not found.missing(keys).any()
    assert StoredFeatures(found, keys).shape == (4, 6)
    torch.testing.assert_close(torch.from_numpy(StoredFeatures(found, keys)[1:3]), rows[1:3], atol=1e-3, rtol=1e-3)


def test_store__former_weights_are_deleted_and_embeddings_stay(tmp_path):
    net, keys = model(), torch.arange(8).reshape(4, 2)
    embeddings = EmbeddingCache(tmp_path).store("encoder")
    embeddings.put(keys, torch.rand(4, 5))
    embeddings.flush()
    features = FeatureStore(tmp_path, max_bytes=4000)
    for _ in range(3):
        store = features.of_weights(net, "1")
        store.put(keys, torch.rand(4, 6))
        store.flush()
        assert len(list((tmp_path / "penultimate").rglob("*.safetensors"))) == 1
        nn.init.normal_(net[0].weight)
    features.clear()
    assert not list((tmp_path / "penultimate").rglob("*.safetensors"))
    assert not EmbeddingCache(tmp_path).store("encoder").missing(keys).any()


def test_store__the_head_does_not_count_but_precision_and_class_do(tmp_path):
    net, features = model(), FeatureStore(tmp_path)
    name = features.of_weights(net, "1", precision="32").fingerprint
    nn.init.zeros_(net[1].weight)
    assert features.of_weights(net, "1", precision="32").fingerprint == name
    assert features.of_weights(net, "1", precision="16").fingerprint != name
