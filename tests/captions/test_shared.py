"""Captions of the direction that all classes share: attributes, embedded by the mean over classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures.captions.candidates import ClassCaptions, attribute_source
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.captions.shared import MOST_CLASSES, caption_shared, shared_candidates
from lightning_failures.core.arrays import unit_vectors
from lightning_failures.directions.shared import SharedDirection, fit_shared_direction

WORDS = ("blurry", "dark", "on grass", "in a box")
VOCABULARY = CaptionVocabulary(adjectives=WORDS[:2], prepositions=WORDS[2:])
CLASSES = tuple(f"animal {k}" for k in range(30))
DIM = 16


class Text:
    """Embeds a caption as its class plus its attribute; each attribute is one axis."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def encode_texts(self, texts):
        self.calls += texts
        vectors = torch.zeros(len(texts), DIM)
        for row, text in zip(vectors, texts, strict=True):
            class_index = next((k for k in reversed(range(30)) if CLASSES[k] in text), 0)
            row[8:] = torch.from_numpy(np.random.default_rng(class_index).normal(size=8)).float()
            for i, word in enumerate(WORDS):
                row[i] = word in text
        return unit_vectors(vectors)


def shared_by_blur(planted: bool = True, seed: int = 0) -> SharedDirection:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(30), 10)
    x = rng.normal(size=(300, DIM))
    rate = np.where(x[:, 0] > 0.5, 0.7, 0.1) if planted else 0.3
    found = fit_shared_direction(x, labels, rng.random(300) >= rate)
    assert isinstance(found, SharedDirection)
    return found


def test_source__embeds_single_attributes_once():
    text = Text()
    captions = attribute_source(text, VOCABULARY, CLASSES)
    assert captions(3).texts == WORDS
    assert text.calls == [
        *("a photo of an animal 3", "a photo of a blurry animal 3", "a photo of a dark animal 3"),
        *("a photo of an animal 3 on grass", "a photo of an animal 3 in a box"),
    ]
    captions(3)
    assert len(text.calls) == 5


def test_candidates__are_means_over_classes():
    text = Text()
    captions = attribute_source(text, VOCABULARY, CLASSES)
    candidates = shared_candidates(captions, range(30))
    assert candidates.texts == WORDS
    assert len(text.calls) == 5 * MOST_CLASSES
    expected = torch.stack([captions(k).embeddings[2] for k in range(MOST_CLASSES)]).mean(dim=0)
    assert torch.equal(candidates.embeddings[2], expected)
    assert torch.equal(
        candidates.reference, torch.stack([captions(k).reference for k in range(MOST_CLASSES)]).mean(dim=0)
    )


def test_candidates__are_those_that_classes_with_a_name_have_in_common():
    vocabulary = CaptionVocabulary(adjectives=("blurry",), classes={"dog": {"adjectives": ("sleeping",)}})
    captions = attribute_source(Text(), vocabulary, ("dog", " ", "cat"))
    assert shared_candidates(captions, range(3)).texts == ("blurry",)
    assert shared_candidates(attribute_source(Text(), CaptionVocabulary(), ("dog", "cat")), range(2)) is None


def test_caption__names_the_planted_attribute():
    candidates = shared_candidates(attribute_source(Text(), VOCABULARY, CLASSES), range(30))
    found = caption_shared(shared_by_blur(), candidates, top=2)
    assert found["hardest_captions"][0] == "blurry"
    assert found["caption_p_value"] == 0.001
    assert found["hardest_caption_scores"] == tuple(sorted(found["hardest_caption_scores"]))
    assert found["hardest_caption_margins"][0] > 1


def test_caption__p_values_without_a_pattern_are_not_small():
    candidates = shared_candidates(attribute_source(Text(), VOCABULARY, CLASSES), range(30))
    p_values = [caption_shared(shared_by_blur(False, seed), candidates, 1)["caption_p_value"] for seed in range(20)]
    assert 0.25 < np.mean(p_values) < 0.75


def test_caption__equals_the_score_of_a_class_direction():
    """w . z / |z| with z = (caption - reference) / std."""
    shared = shared_by_blur()
    candidates = ClassCaptions(("one", "other"), torch.randn(2, DIM), torch.randn(DIM))
    z = (candidates.embeddings - candidates.reference).numpy() / shared.std
    scores = z @ shared.weight / np.linalg.norm(z, axis=1)
    found = caption_shared(shared, candidates, top=2)
    assert found["hardest_caption_scores"] == pytest.approx(sorted(scores), rel=1e-4)
