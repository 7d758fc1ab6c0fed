import pytest
import torch

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.trainer.caption_sources import CaptionSources


class Texts:
    """An encoder behind a cache, by what it says of itself."""

    def __init__(self, gives_texts):
        self.name, self.fingerprint, self.dim = "colours", "tests", 2
        self.encoder = self
        if gives_texts:
            self.encode_texts = lambda texts: torch.zeros(len(texts), 2)

    def encode_images(self, images):
        raise NotImplementedError


def sources(said, *, gives_texts=True, captioner=None, vocabulary=CaptionVocabulary()):  # noqa: B008
    return CaptionSources(Texts(gives_texts), vocabulary, captioner, 0, lambda message, *_: said.append(message))


@pytest.mark.parametrize(
    ("options", "has_names", "reason"),
    [
        ({"gives_texts": False}, True, "Encoder colours has no text tower; captions are disabled."),
        ({}, False, "Classes have no names"),
        ({"vocabulary": None}, True, None),
    ],
)
def test_sources__why_there_are_no_captions(options, has_names, reason):
    said = []
    assert sources(said, **options)(("cat", "dog"), has_names=has_names) is None
    assert len(said) == (reason is not None)
    assert all(message.startswith(reason) for message in said)


def test_sources__pictures_show_the_candidates_of_the_last_analysis():
    given = sources([], captioner=lambda images: ["a cat"] * len(images))
    assert given(("cat", "dog"), has_names=True)(1) is None
    given._known["dog"] = "candidates"
    assert given(("cat", "dog"), has_names=True)(1) == "candidates"
