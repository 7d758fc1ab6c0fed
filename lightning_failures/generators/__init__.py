"""Image generators: new images of a failure mode, from its caption or from its direction.

Files, each importing only from those above it::

    base       Protocols of an image generator and of a decoder of embeddings
    digits     The packaged diffusion model of coloured digits, which needs no download
    function   A function of the user as a generator, and the conversion of its images
    pipelines  Find a diffusers pipeline in a folder or on the hub, and inspect it without loading it
    diffusers  Text-to-image pipelines of diffusers as generators, and unCLIP pipelines as decoders
    load       From the generator that a user names to a generator object
"""

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
