"""Captions with further nouns: kinds of the thing that a class names (Jain et al., ICLR 2023, 4.1 and C.1).

The candidates are those of the vocabulary ``<name>-extended``, or of the one that the setting names. The directions are
those of the main run.
"""

from __future__ import annotations

import numpy as np
import torch

from lightning_failures.captions import CaptionVocabulary, caption_source, score_captions
from lightning_failures.captions.grammar import known_vocabularies
from lightning_failures.encoders.base import TextEncoder
from lightning_failures.recipes.base import Found
from lightning_failures.recipes.figures import NEAREST
from lightning_failures.recipes.training import Trained


def extended_nouns(trained: Trained) -> Found:
    """Return the hardest and the easiest caption of each class, and the error rates of the images nearest to them."""
    setting, directions = trained.setting, trained.result.directions
    name = f"{setting.captions}-extended"
    if not isinstance(trained.encoder, TextEncoder) or name not in known_vocabularies():
        return Found(notes=("Extended nouns were left out: they need an encoder with texts, and a vocabulary.",))
    assert directions is not None
    captions = caption_source(trained.encoder, CaptionVocabulary.load(name), setting.class_names)
    texts: dict[str, str] = {}
    rates: dict[str, list[float]] = {"hardest": [], "easiest": []}
    for k in directions.classes.tolist():
        candidates = captions(k)
        if candidates is None:
            continue
        scores = score_captions(directions, k, candidates.embeddings, candidates.reference)
        rows = np.flatnonzero(trained.test.y == k)
        for end, best in (("hardest", int(scores.argmin())), ("easiest", int(scores.argmax()))):
            texts[f"{setting.class_names[k]}: {end} with extended nouns"] = candidates.texts[best]
            if len(rows):
                near = trained.embeddings[torch.from_numpy(rows)] @ candidates.embeddings[best]
                closest = rows[near.argsort(descending=True).numpy()[: max(round(NEAREST * len(rows)), 1)]]
                rates[end].append(float(trained.test.failed[closest].mean()))
    figures = {
        f"error rate nearest to the {end} caption, extended nouns": float(np.mean(some))
        for end, some in rates.items()
        if some
    }
    return Found(figures, texts)
