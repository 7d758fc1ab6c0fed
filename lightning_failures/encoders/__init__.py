"""Frozen models that turn images, and for some of them texts, into vectors.

Files, each importing only from those above it::

    base            What the analysis asks of an encoder: small protocols, all but the first for what only some of
    feature_attack  Feature attacks: an image is changed until a feature is as strong as it gets, so that people
    frozen          What keeps a frozen model apart from the training around it: inference state, device, batches,
    preprocessing   From a batch of images in [0, 1] to the input of a frozen model: checked, resized, cropped,
    cache           Embeddings that were computed once, on disk
    clip            CLIP models through open_clip: the space in which failure directions and captions live
    module          Any ``nn.Module`` as an encoder: timm, torchvision, or the classifier itself (its "original
    cached          An encoder together with its cache, and how the encoder that the user named is found
    efficientnet    EfficientNet-Lite0 with real ImageNet weights from a package: natural images on a machine that
    robust          Adversarially robust ResNets, whose features a failure tree splits on (Barlow, Singla et al.
    load            From the one string that a user writes to an encoder
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
from lightning_failures.encoders.clip import OpenCLIPEncoder
from lightning_failures.encoders.efficientnet import efficientnet_lite0
from lightning_failures.encoders.load import load_encoder
from lightning_failures.encoders.module import ModuleEncoder
from lightning_failures.encoders.preprocessing import Preprocessing
from lightning_failures.encoders.robust import RobustEncoder

__all__ = [
    "DifferentiableEncoder",
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
