"""Captions for the classes of an analysis: which classes are worth words, and what the words score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from lightning_failures.arrays import defined
from lightning_failures.budget import Deadline
from lightning_failures.candidates import ClassCaptions
from lightning_failures.captions import caption_p_value, score_captions
from lightning_failures.directions import FailureDirections
from lightning_failures.records import ClassReport
from lightning_failures.rows import Members, PerRow
from lightning_failures.sharing import Share
from lightning_failures.threads import one_thread

__all__ = ["Wording", "put_in_words", "worth_words"]


def worth_words(classes: tuple[ClassReport, ...], limit: int) -> list[int]:
    """The classes (indices) with a direction that get captions: those with a pattern and the lowest accuracy first."""
    fitted = [k for k, entry in enumerate(classes) if entry.cv_score is not None]
    fitted.sort(key=lambda k: (not classes[k].pattern, classes[k].accuracy))
    return fitted[:limit]


@dataclass(frozen=True)
class Wording:
    """What the captions of a class are scored with."""

    directions: FailureDirections
    members: list[Members]
    embedded: PerRow
    top: int
    permutations: int
    seed: int

    def caption(self, entry: ClassReport, k: int, candidates: ClassCaptions | None) -> ClassReport:
        """Put the hardest and easiest captions of class k, and their p-value, into its entry."""
        if candidates is None or not candidates.texts:
            return entry
        members = self.members[k]
        with one_thread():
            scores = score_captions(self.directions, k, candidates.embeddings, candidates.reference)
            p_value = caption_p_value(
                self.directions,
                k,
                self.embedded[members.rows],
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
        return replace(
            entry,
            reference_caption=candidates.reference_text,
            hardest_captions=tuple(candidates.texts[i] for i in hardest),
            hardest_caption_scores=tuple(float(scores[i]) for i in hardest),
            easiest_captions=tuple(candidates.texts[i] for i in easiest),
            easiest_caption_scores=tuple(float(scores[i]) for i in easiest),
            caption_p_value=defined(p_value),
        )


def put_in_words(
    classes: tuple[ClassReport, ...],
    captions: Callable[[int], ClassCaptions | None],
    wording: Wording,
    wanted: list[int],
    share: Share,
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

    made = share.each(work)
    return tuple(made.get(k, entry) for k, entry in enumerate(classes)), len(wanted) - len(made)
