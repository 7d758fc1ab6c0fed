import pytest
import torch

from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import DataError
from lightning_failures.trainer.evaluation_pass import EmbeddingPass
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.ranks import Communicator
from tests.helpers.toy import ColourEncoder, Images


def embedding_pass(*cached_encoders):
    return EmbeddingPass(cached_encoders=cached_encoders, ranks=Communicator())


@pytest.fixture
def cached(tmp_path):
    return CachedEncoder(ColourEncoder(), EmbeddingCache(tmp_path))


def test_embeddings__by_id_whatever_the_order(cached):
    images = Images(6).images
    one_pass = embedding_pass(cached)
    for rows in ([4, 1, 0], [3, 1, 5]):
        one_pass.embed(images[rows], ImageSpace(), torch.tensor(rows))
    ids = torch.tensor([0, 1, 3, 4, 5])
    embeddings = one_pass.embeddings_of(cached, [ids])
    torch.testing.assert_close(embeddings, ColourEncoder().encode_images(images[ids]), atol=2e-3, rtol=2e-3)
    assert cached.encoder.embedded == 5  # nothing twice


def test_embeddings__nan_where_one_is_lacking_and_none_if_all_are(cached):
    images = Images(6).images
    one_pass = embedding_pass(cached)
    one_pass.embed(images[:4], ImageSpace(), torch.tensor([0, 1, 2, 1]))
    assert one_pass.embeddings_of(cached, [torch.tensor([1, 2])]).shape == (2, 12)
    assert one_pass.embeddings_of(cached, [torch.tensor([1, 5])]).isnan().all(1).tolist() == [False, True]
    assert one_pass.embeddings_of(cached, [torch.tensor([3, 5])]) is None


def test_embeddings__of_several_lenses_and_the_next_pass(cached, tmp_path):
    images, other = Images(4).images, CachedEncoder(ColourEncoder("other"), EmbeddingCache(tmp_path))
    for _ in range(2):
        one_pass = embedding_pass(cached, other)
        assert one_pass.has_encoders
        one_pass.embed(images, ImageSpace(), torch.arange(4))
        assert all(one_pass.embeddings_of(each, [torch.arange(4)]).shape == (4, 12) for each in (cached, other))
    assert cached.encoder.embedded == other.encoder.embedded == 4


def test_embeddings__of_images_in_the_users_space(cached):
    images, space = Images(4).images, ImageSpace((0.5,), (0.25,))
    one_pass = embedding_pass(cached)
    one_pass.embed((images - 0.5) / 0.25, space, torch.arange(4))
    embeddings = one_pass.embeddings_of(cached, [torch.arange(4)])
    torch.testing.assert_close(embeddings, ColourEncoder().encode_images(images), atol=2e-3, rtol=2e-3)
    with pytest.raises(DataError, match="instead of 0 to 1"):
        embedding_pass(cached).embed(torch.cat([images, images]) * 9, space, torch.arange(8))


def test_embeddings__none_seen(cached):
    assert embedding_pass(cached).embeddings_of(cached, [torch.arange(0)]).shape == (0, 12)
    assert embedding_pass(cached).embeddings_of(cached, [torch.arange(2)]) is None
    assert not embedding_pass().has_encoders
