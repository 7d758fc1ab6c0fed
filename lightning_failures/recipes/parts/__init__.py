"""Parts of recipes beside the main run: further experiments of a paper on the same trained network.

A part takes a ``Trained`` and returns a ``Found``. People leave parts out with ``--parts``.

Files, each importing only from those above it::

    files     Networks and pictures on disk
    spaces    Failure directions in the space of an Inception and of the network itself
    methods   Rankings by Domino, by a twin that learns from failure, by an early network
    sweep     The strength of the failure mode against the level of what is planted
    filtering  Training on the picks of a pool: by direction, by confidence, at random
    nearest   Accuracy of the images nearest to a caption, by number and by share, and a sheet of them
    nouns     Captions with further nouns
    generated  Images from captions and from directions
    feature_sheet  Pictures of features of a robust network beside those of a standard one
    networks  A second run and other networks: what the first one's captions say about them
"""

from __future__ import annotations

from lightning_failures.recipes.base import Part
from lightning_failures.recipes.parts.filtering import filtering
from lightning_failures.recipes.parts.generated import decoding, synthetic
from lightning_failures.recipes.parts.methods import other_methods
from lightning_failures.recipes.parts.nearest import nearest
from lightning_failures.recipes.parts.networks import other_networks
from lightning_failures.recipes.parts.nouns import extended_nouns
from lightning_failures.recipes.parts.spaces import other_spaces
from lightning_failures.recipes.parts.sweep import sweep_levels

__all__ = ["DECODE", "FILTER", "LEVELS", "METHODS", "NEAREST", "NETWORKS", "NOUNS", "SPACES", "SYNTHETIC"]

SPACES = Part("spaces", "directions in the network's own space, and an Inception's (--inception FILE)", other_spaces)
METHODS = Part("methods", "rankings by Domino, Learning from Failure and an early network", other_methods)
LEVELS = Part("levels", "CV score against the level of what is planted; one training each", sweep_levels)
FILTER = Part("filter", "train on picks of the pool by direction, confidence and at random", filtering)
NEAREST = Part("nearest", "accuracy of the images nearest to a caption, and a sheet of them", nearest)
NOUNS = Part("nouns", "captions with the extended nouns", extended_nouns)
SYNTHETIC = Part("synthetic", "the last layer refitted with images from captions (--generator)", synthetic)
DECODE = Part("decode", "images decoded from the directions (--decoder)", decoding)
NETWORKS = Part(
    "networks", "a second run, a ResNet-50 and a ViT (--vit FILE), by the first one's captions", other_networks
)
