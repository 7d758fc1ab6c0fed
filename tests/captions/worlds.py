"""A world in which images and captions are sums of looks: what holds of the failures is known."""

from dataclasses import dataclass

import numpy as np
import torch

from lightning_failures.captions.candidates import caption_source
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.data.grades import Grades

TINTS, STROKES, POSTURES = ("orange", "cyan", "purple", "green"), ("thin", "thick"), ("slanted", "upright")
BACKGROUNDS = ("gray", "white", "black")
LOOKS = {"tint": TINTS, "stroke": STROKES, "posture": POSTURES, "background": BACKGROUNDS}
WORDS = [word for words in LOOKS.values() for word in words]
DIM = 32


def phrases():
    """Return every combination of stroke, posture and tint, as the packaged vocabulary of digits does."""
    return tuple(
        " ".join(filter(None, (stroke, posture, tint)))
        for stroke in ("", *STROKES)
        for posture in ("", *POSTURES)
        for tint in ("", *TINTS)
    )


VOCABULARY = CaptionVocabulary(
    adjectives=tuple(filter(None, phrases())), prepositions=tuple(f"on a {word} background" for word in BACKGROUNDS)
)


class SumOfLooks:
    """Embeds a text as the sum of the axes of its looks, each with a little of other axes, as encoders do."""

    def __init__(self, *, seed=0, leak=0.0):
        generator = torch.Generator().manual_seed(seed)
        self.axes = dict(zip(WORDS, torch.eye(DIM) + leak * torch.randn(DIM, DIM, generator=generator), strict=False))

    def encode_texts(self, texts):
        """Embed M texts as (M, D) unit vectors."""
        rows = [sum((self.axes[word] for word in text.split() if word in self.axes), self.noun) for text in texts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    noun = 2 * torch.eye(DIM)[-1]


@dataclass
class World:
    """Examples of classes "eight" and "two"; only eights fail by a pattern."""

    grades: Grades
    embeddings: torch.Tensor
    metadata: dict
    captions: object


def make_world(rate, *, n=1200, seed=0, leak=0.0, noise=0.15, vocabulary=VOCABULARY, drawn=None):
    """Draw images; ``rate`` maps looks, as (n,) texts by name, to the probability that an eight fails."""
    rng = np.random.default_rng(seed)
    encoder = SumOfLooks(seed=seed, leak=leak)
    looks = {name: rng.choice(words, n, p=(drawn or {}).get(name)) for name, words in LOOKS.items()}
    x = torch.stack([sum((encoder.axes[words[i]] for words in looks.values()), encoder.noun) for i in range(n)])
    x = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(n) % 2
    chance = np.where(labels == 0, rate(looks), 0.2)
    failed = torch.from_numpy(rng.random(n) < chance)
    grades = Grades(
        ids=torch.arange(n),
        labels=labels,
        predictions=torch.where(failed, 1 - labels, labels),
        confidence=torch.ones(n),
        class_names=("eight", "two"),
    )
    embeddings = torch.nn.functional.normalize(x, dim=1)
    captions = caption_source(encoder, vocabulary, grades.class_names)
    return World(grades, embeddings, looks, captions)
