"""Captions of the direction that all classes share: attributes without a class, such as "blurry" or "on grass"."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_failures.captions.assign import caption_margins
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.captions.grammar import NamelessClassError
from lightning_failures.captions.scoring import scores_along
from lightning_failures.core.arrays import as_array, defined
from lightning_failures.directions.shared import SharedDirection

MOST_CLASSES = 10
"""Maximum number of classes whose prompts are averaged."""

_ROUNDING = 1e-5


def shared_candidates(
    captions: Callable[[int], ClassCaptions | None], class_indices: Iterable[int]
) -> ClassCaptions | None:
    """Return the attributes that the first 10 classes have in common, embedded by the mean over their prompts.

    Args:
        captions: Returns the captions of a class that name one attribute each, or None.
        class_indices: Classes, the most important first; those without a name are left out.

    Returns:
        The attributes; their reference is the mean of the prompts of the classes. None if there are none.
    """
    found: list[ClassCaptions] = []
    for k in class_indices:
        try:
            of_class = captions(k)
        except NamelessClassError:
            continue
        if of_class is not None:
            found.append(of_class)
        if len(found) == MOST_CLASSES:
            break
    texts = [text for text in found[0].texts if all(text in other.texts for other in found)] if found else []
    if not texts:
        return None
    of_text = [dict(zip(one.texts, one.embeddings, strict=True)) for one in found]
    embeddings = torch.stack([torch.stack([one[text] for one in of_text]).mean(dim=0) for text in texts])
    return ClassCaptions(tuple(texts), embeddings, torch.stack([one.reference for one in found]).mean(dim=0))


def caption_shared(shared: SharedDirection, candidates: ClassCaptions, top: int) -> dict[str, Any]:
    """Return the fields of a report that describe the captions of the shared direction.

    The p-value is how often a direction of permuted correctness scores *any* candidate as high as the observed one
    does, by absolute values; see :func:`~lightning_failures.captions.scoring.caption_p_value`.

    Args:
        shared: The direction.
        candidates: The attributes.
        top: Number of hardest and of easiest captions.
    """
    texts, embeddings = candidates.texts, as_array(candidates.embeddings).astype(np.float32)
    reference = as_array(candidates.reference).astype(np.float32)

    def along(weight: NDArray[np.float32]) -> NDArray[Any]:
        return scores_along(weight, embeddings, reference, shared.std)

    scores = along(shared.weight[None])[0]
    order = np.argsort(scores, kind="stable")
    hardest, easiest = order[:top], order[::-1][:top]
    margins = caption_margins(torch.from_numpy(scores))
    p_value = float("nan")
    if len(shared.permuted):
        observed = float(np.abs(along(shared.unscaled[None])).max())
        by_chance = np.abs(along(shared.permuted)).max(axis=1)
        p_value = float(1 + (by_chance >= observed * (1 - _ROUNDING)).sum()) / (1 + len(by_chance))
    return {
        "hardest_captions": tuple(texts[i] for i in hardest),
        "hardest_caption_scores": tuple(scores[hardest].tolist()),
        "hardest_caption_margins": () if margins is None else tuple((-margins[hardest]).tolist()),
        "easiest_captions": tuple(texts[i] for i in easiest),
        "easiest_caption_scores": tuple(scores[easiest].tolist()),
        "caption_p_value": defined(p_value),
    }
