"""Frozen models that turn images, and some of them texts, into embeddings.

Files, each importing only from those above it::

    base               Protocols of an encoder; texts, feature maps and gradients are optional abilities
    feature_attack     Feature attacks: change an image until one of its features is as strong as possible
    frozen             Inference state, device, batches and fingerprint of a model that must not touch the training
    preprocessing      From images in [0, 1] to the input of a frozen model: check, resize, crop, normalise
    cache              Embeddings on disk, so that an image is encoded once
    open_clip_patches  Temporary changes to open_clip while it loads a model
    clip               CLIP models through open_clip: the space of failure directions and captions
    module             Any ``nn.Module`` as an encoder: timm, torchvision, or the classifier itself
    efficientnet       EfficientNet-Lite0 with ImageNet weights from a package, for machines that cannot reach a hub
    robust             Adversarially robust ResNets, whose features failure trees split on (Barlow)
    load               From the string that a user writes to an encoder
    tolerant           An encoder whose errors cost only the images that cause them
    cached             An encoder with its cache, and how the encoder that the user named is loaded
"""

from lightning_failures.encoders.base import (
    DifferentiableEncoder,
    Encoder,
    FeatureEncoder,
    TextEncoder,
    gives_gradients,
    gives_maps,
    gives_texts,
)
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.encoders.clip import OpenCLIPEncoder
from lightning_failures.encoders.efficientnet import efficientnet_lite0
from lightning_failures.encoders.load import load_encoder
from lightning_failures.encoders.module import ModuleEncoder
from lightning_failures.encoders.preprocessing import Preprocessing
from lightning_failures.encoders.robust import RobustEncoder

__all__ = [
    "DifferentiableEncoder",
    "EmbeddingCache",
    "Encoder",
    "FeatureEncoder",
    "ModuleEncoder",
    "OpenCLIPEncoder",
    "Preprocessing",
    "RobustEncoder",
    "TextEncoder",
    "efficientnet_lite0",
    "gives_gradients",
    "gives_maps",
    "gives_texts",
    "load_encoder",
]
