import pytest
import torch
import yaml

from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.encoders.cached import DEFAULT_ENCODER, CachedEncoder
from lightning_failures.errors import EncoderError
from tests.helpers.toy import ColourEncoder


class Reader(ColourEncoder):
    """Embeds texts by their letters, and remembers which it was asked for."""

    def __init__(self):
        super().__init__()
        self.read = []

    def encode_texts(self, texts):
        self.read.extend(texts)
        rows = torch.tensor([[text.count(letter) + 1.0 for letter in "acdeghnostw "] for text in texts])
        return rows / rows.norm(dim=1, keepdim=True)


TEXTS = ("a cat", "a dog", "two dogs", "")


def test_encode_texts__reads_each_text_once_in_this_run_and_the_next(tmp_path):
    cached = CachedEncoder(Reader(), EmbeddingCache(tmp_path))
    first = cached.encode_texts(TEXTS)
    torch.testing.assert_close(first, Reader().encode_texts(TEXTS), atol=1e-3, rtol=0)
    assert torch.equal(cached.encode_texts(TEXTS[::-1]), first.flip(0))
    assert len(cached.encoder.read) == len(TEXTS)
    cached.store.flush()
    later = CachedEncoder(Reader(), EmbeddingCache(tmp_path))
    assert torch.equal(later.encode_texts((*TEXTS, "an owl"))[:-1], first)
    assert later.encoder.read == ["an owl"]


def test_encode_texts__none():
    assert len(CachedEncoder(Reader(), EmbeddingCache()).encode_texts(())) == 0


def test_encode_texts__shares_a_store_with_images(tmp_path):
    cached = CachedEncoder(Reader(), EmbeddingCache(tmp_path))
    images = torch.rand(3, 3, 4, 4)
    embedded = cached.embed_now(images)
    texts = cached.encode_texts(TEXTS)
    assert torch.equal(cached.embed_now(images), embedded)
    assert torch.equal(cached.encode_texts(TEXTS), texts)


def test_look_up__no_keys_in_an_empty_store():
    rows = CachedEncoder(Reader(), EmbeddingCache()).look_up(torch.empty(0, 2, dtype=torch.int64))
    assert rows.shape == (0, Reader().dim)


def test_encode_texts__of_an_encoder_without_texts(tmp_path):
    with pytest.raises(EncoderError, match="has no text tower"):
        CachedEncoder(ColourEncoder(), EmbeddingCache(tmp_path)).encode_texts(("a cat",))


def test_default_encoder__is_a_plain_name_in_yaml():
    """LightningCLI saves the defaults of a configuration too."""
    assert yaml.safe_load(yaml.safe_dump({"encoder": DEFAULT_ENCODER})) == {"encoder": "ViT-B-32/openai"}
