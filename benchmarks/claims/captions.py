"""The images nearest the hard caption are harder than those nearest the easy one (Fig. 7b)."""

from __future__ import annotations

from typing import Any

import numpy as np

from claims.common import World, all_captions
from claims.comparing import Comparison
from lightning_failures.captions import score_captions

__all__ = ["COMPARISONS", "run"]

NEAREST = (10, 20, 50, 100, 200)

COMPARISONS = tuple(
    Comparison(f"accuracy on the {k} test images of a class nearest a caption, easy > hard", (str(k),), "easy", "hard")
    for k in (20, 50, 100)
)


def run(world: World) -> dict[str, Any]:
    """Accuracy of the plain model on the nearest test images, mean over the classes with a pattern."""
    test, directions = world.split("test"), world.directions()
    curves: dict[str, dict[str, list[float]]] = {str(k): {"easy": [], "hard": []} for k in NEAREST}
    reference, texts = [], {}
    for c in world.patterns():
        captions, mine = all_captions()[c], test.grades.labels == c
        scores = score_captions(directions, c, captions.embeddings, captions.reference)
        right = test.grades.correct[mine].float()
        reference.append(float(right.mean()))
        chosen = {"hard": int(scores.argmin()), "easy": int(scores.argmax())}
        texts[test.data.classes[c]] = {name: captions.texts[m] for name, m in chosen.items()}
        for name, m in chosen.items():
            ordered = right[(test.embeddings[mine] @ captions.embeddings[m]).argsort(descending=True, stable=True)]
            for k in NEAREST:
                curves[str(k)][name].append(float(ordered[:k].mean()))
    return {
        k: {name: float(np.mean(values)) for name, values in arms.items()} | {"all": float(np.mean(reference))}
        for k, arms in curves.items()
    } | {"captions": texts}
