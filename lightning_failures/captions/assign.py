"""Captions for the classes of an analysis: which classes are worth words, and what the words score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.captions.scoring import caption_p_value, score_captions
from lightning_failures.core.arrays import as_array, defined
from lightning_failures.core.budget import Deadline
from lightning_failures.core.threads import one_thread
from lightning_failures.data.members import ClassSubset, RowValues, Values
from lightning_failures.data.partition import Partition
from lightning_failures.data.report import ClassReport, CurvePoint
from lightning_failures.directions.result import FailureDirections

_SIZES = tuple(10 * 2**i for i in range(11))
_TINY = float(np.finfo(np.float32).tiny)


def classes_to_caption(classes: tuple[ClassReport, ...], limit: int) -> list[int]:
    """The classes (indices) with a direction that get captions: those with a pattern and the lowest accuracy first."""
    fitted = [k for k, entry in enumerate(classes) if entry.cv_score is not None]
    fitted.sort(key=lambda k: (not classes[k].pattern, classes[k].accuracy))
    return fitted[:limit]


@dataclass(frozen=True)
class CaptionScorer:
    """What the captions of a class are scored with."""

    directions: FailureDirections
    members: list[ClassSubset]
    embedded: RowValues
    top: int
    permutations: int
    seed: int

    def caption(self, entry: ClassReport, k: int, candidates: ClassCaptions | None) -> ClassReport:
        """Put the hardest and easiest captions of class k, and their p-value, into its entry."""
        if candidates is None or not candidates.texts:
            return entry
        members = self.members[k].by_id()
        embedded = self.embedded[members.rows]
        with one_thread():
            scores = score_captions(self.directions, k, candidates.embeddings, candidates.reference)
            p_value = caption_p_value(
                self.directions,
                k,
                embedded,
                ~members.failed,
                candidates.embeddings,
                candidates.reference,
                ids=members.ids,
                groups=members.sources,
                permutations=self.permutations,
                seed=self.seed,
            )
        order = torch.argsort(scores, stable=True)
        hardest, easiest = order[: self.top].tolist(), order.flip(0)[: self.top].tolist()
        margins = caption_margins(scores)
        return replace(
            entry,
            reference_caption=candidates.reference_text,
            hardest_captions=tuple(candidates.texts[i] for i in hardest),
            hardest_caption_scores=tuple(float(scores[i]) for i in hardest),
            hardest_caption_margins=tuple((-margins[hardest]).tolist()) if margins is not None else (),
            easiest_captions=tuple(candidates.texts[i] for i in easiest),
            easiest_caption_scores=tuple(float(scores[i]) for i in easiest),
            easiest_caption_margins=tuple(margins[easiest].tolist()) if margins is not None else (),
            caption_p_value=defined(p_value),
            nearest=nearest_curve(embedded, members.failed, candidates.embeddings[[hardest[0], easiest[0]]]),
        )


def caption_margins(scores: Tensor) -> NDArray[np.float64] | None:
    """Return how far each score lies above the mean of all, in their standard deviations; None where all are alike.

    The standard deviation divides by the number of candidates. Below the mean margins are negative.

    >>> caption_margins(torch.tensor([1.0, 2.0, 3.0, 6.0])).round(2)
    array([-1.07, -0.53,  0.  ,  1.6 ])
    """
    values = as_array(scores).astype(np.float64)
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else None


def nearest_curve(embedded: Values, failed: NDArray[np.bool_], captions: Tensor) -> tuple[CurvePoint, ...]:
    """Return the accuracy among the k examples of a class that are nearest to its hardest and to its easiest caption.

    Source: Jain et al., ICLR 2023, figure 7b. Nearest is by cosine in the space of images and captions, where phi has
    no part: it asks whether the words find the failures, without the direction that they came from. k is 10, 20, 40 and
    so on, and then all.

    Args:
        embedded: (n, D) of the examples, by id; of ties the first are nearer.
        failed: (n,) bool.
        captions: (2, D), of the hardest and the easiest caption.
    """
    x = as_array(embedded).astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("nd,nd->n", x, x))
    cosines = (x @ as_array(captions).astype(np.float32).T) / np.maximum(lengths, _TINY)[:, None]
    order = np.argsort(-cosines, axis=0, kind="stable")
    right = np.cumsum(~failed[order], axis=0)
    sizes = [k for k in _SIZES if k < len(x)] + [len(x)]
    return tuple(CurvePoint(k, *(right[k - 1] / k).tolist()) for k in sizes)


def caption_classes(
    classes: tuple[ClassReport, ...],
    captions: Callable[[int], ClassCaptions | None],
    wording: CaptionScorer,
    wanted: list[int],
    share: Partition,
    *,
    deadline: Deadline | None,
) -> tuple[tuple[ClassReport, ...], int]:
    """The classes with captions, and how many of those wanted went without, for want of time."""

    def work() -> dict[int, ClassReport]:
        made = {}
        for k in filter(share.owns, wanted):
            if deadline is not None and deadline.passed:
                break
            made[k] = wording.caption(classes[k], k, captions(k))
        return made

    made = share.merge_results(work)
    return tuple(made.get(k, entry) for k, entry in enumerate(classes)), len(wanted) - len(made)
