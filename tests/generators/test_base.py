"""Which generators can decode embeddings."""

import torch

from lightning_failures.generators import FunctionGenerator, ImageGenerator, takes_embeddings


class Decoder(FunctionGenerator):
    encoder_fingerprint = "f"

    def decode(self, embeddings, seeds):
        return self.generate([""] * len(embeddings), seeds)


def test_takes_embeddings__by_its_methods():
    def paint(prompts, seeds):
        return torch.zeros(len(seeds), 3, 4, 4)

    assert isinstance(FunctionGenerator(paint), ImageGenerator)
    assert not takes_embeddings(FunctionGenerator(paint))
    assert takes_embeddings(Decoder(paint))
