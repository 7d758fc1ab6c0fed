"""With the packaged CLIP: real captions in a real text space."""

import pytest
import torch

from lightning_failures.captions.candidates import caption_source
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.encoders import load_encoder

VOCABULARY = CaptionVocabulary(
    template="a photo of a {}", adjectives=("red", "thin"), classes={"5": {"nouns": ("five",)}}
)


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("embedded:digits")


def test_captions__texts_and_their_embeddings(encoder):
    captions = caption_source(encoder, VOCABULARY, ("4", "5"), {})
    five = captions(1)
    assert five.texts == ("a photo of a red five", "a photo of a thin five")
    expected = encoder.encode_texts(["a photo of a five", *five.texts])
    torch.testing.assert_close(five.reference, expected[0])
    torch.testing.assert_close(five.embeddings, expected[1:])
    assert captions(0).texts == ("a photo of a red 4", "a photo of a thin 4")


def test_captions__embedded_once_and_kept_by_name(encoder):
    known = {}
    first = caption_source(encoder, VOCABULARY, ("4", "5"), known)(1)
    assert list(known) == ["5"]
    again = caption_source(encoder, VOCABULARY, ("5",), known)(0)
    assert again is first


def test_captions__a_class_without_candidates(encoder):
    captions = caption_source(encoder, CaptionVocabulary(), ("4",), {})
    assert captions(0) is None
