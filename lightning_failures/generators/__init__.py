"""Image generators: what makes new images of a failure mode, from its caption or from its direction.

Files, each importing only from those above it::

    base       What an intervention asks of an image generator: two small protocols
    digits     The packaged diffusion model of coloured digits: prompts and embeddings become images without a
    function   A function of the user as a generator
    pipelines  Finding a pipeline of diffusers, in a folder or on the hub, without loading it
    diffusers  Any text-to-image pipeline of diffusers as a generator, and pipelines of the unCLIP type as decoders
    load       From what a user names to a generator
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
