"""Image generators: what makes new images of a failure mode, from its caption or from its direction."""

from lightning_failures.generators.base import EmbeddingDecoder, ImageGenerator, takes_embeddings
from lightning_failures.generators.diffusers import DiffusersDecoder, DiffusersGenerator
from lightning_failures.generators.function import FunctionGenerator
from lightning_failures.generators.load import load_generator

__all__ = [
    "DiffusersDecoder",
    "DiffusersGenerator",
    "EmbeddingDecoder",
    "FunctionGenerator",
    "ImageGenerator",
    "load_generator",
    "takes_embeddings",
]
