"""Captions for the classes of an analysis: selection of the classes, and their scored captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lightning_failures.captions.attributes import CaptionAttributes
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.captions.grammar import NamelessClassError
from lightning_failures.captions.readings import WordShares, word_shares
from lightning_failures.captions.scoring import (
    CaptionComparison,
    CaptionGain,
    compare_captions,
    permuted_distances,
    score_captions,
)
from lightning_failures.captions.shortest import Shortening, shorten
from lightning_failures.core.arrays import as_array, defined
from lightning_failures.core.budget import Deadline
from lightning_failures.core.text import failure_notes
from lightning_failures.core.threads import one_thread
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.evidence import AttributeEvidence
from lightning_failures.data.grouping import CodedValues
from lightning_failures.data.members import ClassSubset, RowValues, Values
from lightning_failures.data.partition import Partition
from lightning_failures.data.report import ClassReport, CurvePoint
from lightning_failures.directions.result import FailureDirections
from lightning_failures.stats.sequential import enough_of

NEAREST_IDS = 50
"""Number of the examples nearest to a caption whose ids a report keeps."""

_NEIGHBOURS = tuple(10 * 2**i for i in range(11))
_TINY = float(np.finfo(np.float32).tiny)


def classes_to_caption(classes: tuple[ClassReport, ...], limit: int) -> list[int]:
    """Return the indices of the classes that get captions, at most ``limit`` of those with a direction.

    They are ranked as in the tables of the report.
    """
    fitted = [k for k, entry in enumerate(classes) if entry.cv_score is not None]
    fitted.sort(key=lambda k: classes[k].rank)
    return fitted[:limit]


@dataclass(frozen=True)
class CaptionScorer:
    """Scores the captions of the classes of an analysis.

    Attributes:
        directions: The directions of the classes.
        members: The examples of each class.
        embedded: Embeddings of the examples, at least of the classes that this process owns.
        top: Number of hardest and of easiest captions that a class keeps.
        permutations: Permutations of the test of the best caption.
        seed: The source of randomness.
        metadata: Known attributes of all rows of the grades, by name.
        device: Device of the products with permuted correctness.
    """

    directions: FailureDirections
    members: list[ClassSubset]
    embedded: RowValues
    top: int
    permutations: int
    seed: int
    metadata: Mapping[str, CodedValues] = field(default_factory=dict)
    device: str | torch.device = "cpu"

    def caption(self, entry: ClassReport, k: int, candidates: ClassCaptions | None) -> ClassReport:
        """Return the report of class k with its hardest and easiest captions and their p-value.

        The first caption of each end is the shortest one within noise of the best one. The report is unchanged where
        there are no candidates.
        """
        if candidates is None or not candidates.texts:
            return entry
        members = self.members[k].by_id()
        embedded = self.embedded[members.rows]
        out_of_fold = as_array(self.directions.out_of_fold)[members.rows]
        sure = ~as_array(self.directions.in_doubt)[members.rows]  # the others take no part in tests
        sure &= candidates.taking_part(members.ids, members.sources)
        tested = members.take(sure)
        attributes = CaptionAttributes.of(candidates)
        with one_thread():
            scores = score_captions(self.directions, k, candidates.embeddings, candidates.reference)
            order = torch.argsort(scores, stable=True)
            shortenings = []
            for best, sign in ((int(order[0]), 1), (int(order[-1]), -1)):
                shares: dict[str, WordShares] = {}
                if best in attributes.words:
                    noun, words = attributes.nouns[best], attributes.words[best]
                    shares = word_shares(
                        words, noun, candidates, attributes, embedded, out_of_fold < 0, self.metadata, members.rows
                    )
                shortenings.append(shorten(best, scores, candidates, attributes, shares, sign=sign))
            p_value, gains = compare_captions(
                permuted_distances(
                    self.directions,
                    k,
                    embedded[sure] if not sure.all() else embedded,
                    ~tested.failed,
                    candidates.embeddings,
                    candidates.reference,
                    ids=tested.ids,
                    groups=tested.sources,
                    permutations=self.permutations,
                    seed=self.seed,
                    device=self.device,
                ),
                [comparison for shortening in shortenings for comparison in shortening.comparisons],
                enough=enough_of(self.permutations),
            )
        hardest, easiest = (
            _shown_first(shortening, gains, ranked, scores, candidates, self.top)
            for shortening, ranked in zip(shortenings, (order.tolist(), order.flip(0).tolist()), strict=True)
        )
        nearest = nearest_rows(embedded, torch.stack([hardest.embedding, easiest.embedding]))
        nearest_ids = members.ids[nearest[:NEAREST_IDS]].T.tolist()
        return replace(
            entry,
            reference_caption=candidates.reference_text,
            hardest_captions=hardest.texts,
            hardest_caption_scores=hardest.scores,
            hardest_caption_margins=tuple(-margin for margin in hardest.margins),
            hardest_caption_attributes=hardest.evidence,
            easiest_captions=easiest.texts,
            easiest_caption_scores=easiest.scores,
            easiest_caption_margins=easiest.margins,
            easiest_caption_attributes=easiest.evidence,
            caption_p_value=defined(p_value),
            nearest=nearest_curve(nearest, members.failed),
            nearest_hardest_ids=tuple(nearest_ids[0]),
            nearest_easiest_ids=tuple(nearest_ids[1]),
        )


@dataclass(frozen=True)
class _End:
    """The captions of one end of a direction: the one to show, then the best of the others.

    Attributes:
        texts: The captions.
        scores: Their scores.
        margins: Their margins; empty if all candidates score alike.
        embedding: (D,) of the first one.
        evidence: The evidence for the attributes that the first one names.
    """

    texts: tuple[str, ...]
    scores: tuple[float, ...]
    margins: tuple[float, ...]
    embedding: Tensor
    evidence: tuple[AttributeEvidence, ...]


def _shown_first(
    shortening: Shortening,
    gains: Mapping[CaptionComparison, CaptionGain],
    ranked: Sequence[int],
    scores: Tensor,
    candidates: ClassCaptions,
    top: int,
) -> _End:
    """Return the captions of one end, with that to show in front.

    Args:
        shortening: The captions that may be shown.
        gains: The result of their comparisons.
        ranked: All candidates, the best first.
        scores: (M,) scores of all candidates.
        candidates: The candidates.
        top: Number of captions.
    """
    shown, evidence = shortening.choose(gains)
    texts: tuple[str, ...] = candidates.texts
    embeddings = candidates.embeddings
    if shown is None:  # the reference: it scores 0, and is no candidate
        shown = len(texts)
        texts = (*texts, candidates.reference_text or "")
        embeddings = torch.cat([embeddings, candidates.reference[None]])
    with_reference = torch.cat([scores, scores.new_zeros(1)])
    margins = caption_margins(with_reference, candidates=scores)
    indices = [shown, *(index for index in ranked if index != shown)][:top]
    return _End(
        texts=tuple(texts[i] for i in indices),
        scores=tuple(with_reference[indices].tolist()),
        margins=tuple(margins[indices].tolist()) if margins is not None else (),
        embedding=embeddings[shown],
        evidence=evidence,
    )


def caption_margins(scores: Tensor, candidates: Tensor | None = None) -> FloatArray | None:
    """Return the z-score of each caption score among all candidates; None if the candidates score alike.

    The standard deviation has ddof 0. Margins are negative below the mean.

    Args:
        scores: (m,) scores.
        candidates: (M,) scores of all candidates. None: ``scores``.

    >>> caption_margins(torch.tensor([1.0, 2.0, 3.0, 6.0])).round(2)
    array([-1.07, -0.53,  0.  ,  1.6 ])
    """
    values = as_array(scores).astype(np.float64)
    among = values if candidates is None else as_array(candidates).astype(np.float64)
    spread = among.std()
    return (values - among.mean()) / spread if spread > 0 else None


def nearest_rows(embedded: Values, captions: Tensor) -> IntArray:
    """Return the examples of a class by their distance from captions, the nearest first, (n, M) int64.

    Distance is by cosine in the joint space of images and captions, without phi.

    Args:
        embedded: (n, D) embeddings of the examples, by id; among ties the first example is the nearest.
        captions: (M, D) embeddings of the captions.
    """
    x = as_array(embedded).astype(np.float32, copy=False)
    lengths = np.sqrt(np.einsum("nd,nd->n", x, x))
    cosines = (x @ as_array(captions).astype(np.float32).T) / np.maximum(lengths, _TINY)[:, None]
    return np.argsort(-cosines, axis=0, kind="stable")


def nearest_curve(nearest: IntArray, failed: BoolArray) -> tuple[CurvePoint, ...]:
    """Return the accuracy among the k examples of a class nearest to its hardest and to its easiest caption.

    Source: Jain et al., ICLR 2023, figure 7b. The curve shows whether the caption alone, without its direction, finds
    the failures. k is 10, 20, 40 and so on, and finally the number of examples.

    Args:
        nearest: (n, 2) rows by their distance from the hardest and the easiest caption, see :func:`nearest_rows`.
        failed: (n,) bool.
    """
    n_correct = np.cumsum(~failed[nearest], axis=0)
    sizes = [k for k in _NEIGHBOURS if k < len(nearest)] + [len(nearest)]
    return tuple(CurvePoint(k, *(n_correct[k - 1] / k).tolist()) for k in sizes)


def caption_classes(
    classes: tuple[ClassReport, ...],
    captions: Callable[[int], ClassCaptions | None],
    scorer: CaptionScorer,
    class_indices: list[int],
    share: Partition,
    *,
    deadline: Deadline | None,
    raise_errors: bool = False,
) -> tuple[tuple[ClassReport, ...], int, tuple[str, ...]]:
    """Return the captioned class reports, the number of classes skipped for want of time, and notes on failures.

    A class whose captions raise an error, such as one whose name holds no word, stays without captions.

    Args:
        classes: K reports.
        captions: Returns the embedded candidates of a class, or None.
        scorer: Scores the candidates.
        class_indices: Indices of the classes that get captions, the most important first.
        share: The classes that this process owns.
        deadline: Classes that the deadline does not leave time for are skipped.
        raise_errors: Raise errors other than that a name holds no word.
    """

    def caption_own_classes() -> dict[int, ClassReport | str]:
        captioned: dict[int, ClassReport | str] = {}
        for k in filter(share.owns, class_indices):
            if deadline is not None and deadline.passed:
                break
            try:
                captioned[k] = scorer.caption(classes[k], k, captions(k))
            except Exception as error:
                if raise_errors and not isinstance(error, NamelessClassError):
                    raise
                captioned[k] = f"{type(error).__name__}: {error}"
        return captioned

    results = share.merge_results(caption_own_classes)
    captioned = {k: result for k, result in results.items() if isinstance(result, ClassReport)}
    failures = [(classes[k].name, result) for k, result in sorted(results.items()) if isinstance(result, str)]
    n_uncaptioned = len(class_indices) - len(results)
    return (
        tuple(captioned.get(k, entry) for k, entry in enumerate(classes)),
        n_uncaptioned,
        failure_notes("captions for class", failures),
    )
