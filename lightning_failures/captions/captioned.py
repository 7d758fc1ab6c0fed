"""Candidate captions from the data: the words of captioned images of each class."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from itertools import zip_longest

import numpy as np
from torch import Tensor

from lightning_failures.captions.candidates import CaptionEncoder, ClassCaptions
from lightning_failures.captions.grammar import CaptionGrammar, CaptionVocabulary
from lightning_failures.captions.image_to_text import IMAGES_AT_ONCE, Captioner, describe
from lightning_failures.captions.words import over_represented, words_of_name
from lightning_failures.core.budget import Deadline
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.types import BoolArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import ClassSubset, members_of
from lightning_failures.errors import DataError
from lightning_failures.stats.folds import stratified_group_folds

MOST_IMAGES = 50
"""Maximum number of failures, and of correct images, of a class that are captioned."""


def captioned_source(
    encoder: CaptionEncoder,
    captioner: Captioner,
    grades: Grades,
    images: Callable[[Sequence[int]], Sequence[Tensor]],
    *,
    sampled: BoolArray | None = None,
    deadline: Deadline | None = None,
    seed: int = 0,
    described: MutableMapping[int, str] | None = None,
    known: MutableMapping[str, ClassCaptions] | None = None,
) -> Callable[[int], ClassCaptions | None]:
    """Return the source of captions for :func:`~lightning_failures.analysis.analyse.analyse` that come from the data.

    Some failures and correct images of a class are captioned. Words, and pairs of words, that one of the two uses more
    often become candidates: "a photo of a cat, wooden table". Since the candidates are chosen by the correctness of
    these examples, the examples take no part in the test of the best candidate (``ClassCaptions.chosen_from``), which
    keeps its p-value uniform where there is no pattern. Half of the failures and half of the correct examples are left
    to the test at least. Which ones are captioned depends on nothing but correctness and a hash of the ids.

    Args:
        encoder: Embeds the candidates.
        captioner: Describes images.
        grades: N rows, those of the analysis.
        images: Returns the images (C, H, W) in [0, 1] of n ids, whose sizes may differ.
        sampled: (N,) bool, the rows that are analysed. None: every row.
        deadline: When no more images are captioned; the first 16 of a class always are. None: no limit.
        seed: Seed of the sample.
        described: Captions by id. Captions are added, so that each image is captioned once.
        known: Candidates by class name; the latest ones are kept.
    """
    members = members_of(grades, sampled=sampled)
    names = [subset.name for subset in members]
    described = {} if described is None else described
    known = {} if known is None else known

    def candidates(k: int) -> ClassCaptions | None:
        known.pop(names[k], None)
        grammar = CaptionVocabulary().grammar_of(names[k], names)  # a class without a name costs no captions
        failed, correct = sample_to_caption(members[k].by_id(), seed=seed)
        _describe_missing(captioner, _interleaved(failed, correct), images, described, deadline)
        of_failed, of_correct = ([described[i] for i in ids if i in described] for ids in (failed, correct))
        if not any(text.split() for text in (*of_failed, *of_correct)):
            raise DataError(f"all {len(of_failed) + len(of_correct)} texts of the captioner are empty")
        found = over_represented(of_failed, of_correct, without=words_of_name(names[k]))
        noun = grammar.nouns[0]
        grammar = CaptionGrammar([noun, *(f"{noun}, {words}" for words in found)], template=grammar.template)
        texts = tuple(grammar.captions())
        if not texts:
            return None
        vectors = encoder.encode_texts([str(grammar.reference), *texts])
        chosen_from = np.array([i for i in (*failed, *correct) if i in described], dtype=np.int64)
        known[names[k]] = ClassCaptions(texts, vectors[1:], vectors[0], grammar.reference, chosen_from=chosen_from)
        return known[names[k]]

    return candidates


def sample_to_caption(subset: ClassSubset, *, seed: int = 0) -> tuple[list[int], list[int]]:
    """Return the ids of the failures, and of the correct examples, of a class that are captioned: at most 50 of each.

    They belong to one half of the sources, and each source gives one failure and one correct example at most.

    Args:
        subset: The examples of the class, by id.
        seed: Seed of the hash.
    """
    sources = subset.ids if subset.sources is None else subset.sources
    first_half = stratified_group_folds(subset.failed, sources, folds=2, seed=seed) == 0
    by_hash = np.argsort(stable_hash(subset.ids, seed), kind="stable")

    def ids(outcome: bool) -> list[int]:
        rows = by_hash[(first_half & (subset.failed == outcome))[by_hash]]
        _, first_of_source = np.unique(sources[rows], return_index=True)
        chosen: list[int] = subset.ids[rows[np.sort(first_of_source)]][:MOST_IMAGES].tolist()
        return chosen

    return ids(True), ids(False)


def _interleaved(failed: Sequence[int], correct: Sequence[int]) -> list[int]:
    """Return the ids of both in turn, so that the first ones are of both kinds."""
    return [i for pair in zip_longest(failed, correct) for i in pair if i is not None]


def _describe_missing(
    captioner: Captioner,
    ids: Sequence[int],
    images: Callable[[Sequence[int]], Sequence[Tensor]],
    described: MutableMapping[int, str],
    deadline: Deadline | None,
) -> None:
    """Add the captions of images that have none yet, until the deadline."""
    missing = [i for i in ids if i not in described]
    for start in range(0, len(missing), IMAGES_AT_ONCE):
        if start and deadline is not None and deadline.passed:
            return
        some = missing[start : start + IMAGES_AT_ONCE]
        described.update(zip(some, describe(captioner, images(some)), strict=True))
