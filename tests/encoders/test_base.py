"""Which optional abilities an encoder has."""

import torch

from lightning_failures.encoders import ModuleEncoder, gives_gradients, gives_maps, gives_texts


class Plain:
    name = fingerprint = "plain"
    dim = 3

    def encode_images(self, images):
        return torch.zeros(len(images), 3)


class WithTexts(Plain):
    def encode_texts(self, texts):
        return torch.zeros(len(texts), 3)


class WithMaps(Plain):
    def encode_maps(self, images):
        return torch.zeros(len(images), 3, 2, 2)


def test_abilities__by_their_methods():
    assert [gives_texts(encoder) for encoder in (Plain(), WithTexts())] == [False, True]
    assert [gives_maps(encoder) for encoder in (Plain(), WithMaps())] == [False, True]
    assert not gives_gradients(Plain())


def test_gives_maps__a_layer_of_vectors_has_none(net):
    encoder = ModuleEncoder(net, "stem")
    assert gives_maps(encoder)
    assert gives_gradients(encoder)
    encoder.has_maps = False
    assert not gives_maps(encoder)
