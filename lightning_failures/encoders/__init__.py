"""Frozen models that turn images, and for some of them texts, into vectors."""

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
