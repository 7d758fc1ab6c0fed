"""Image generators: what makes new images of a failure mode, from its caption or from its direction."""

from lightning_failures.generators.base import EmbeddingDecoder, ImageGenerator, takes_embeddings

__all__ = ["EmbeddingDecoder", "ImageGenerator", "takes_embeddings"]
