"""Captions: are there words for the classes, and does the encoder know pictures from words at all?"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from torch import Tensor

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.core.rng import isolated_rng
from lightning_failures.doctor.dry_run import CheckContext
from lightning_failures.doctor.findings import Finding, ok, problem, skipped, warning
from lightning_failures.doctor.reference_images import coloured_digits, plain_shapes, zero_shot_accuracy
from lightning_failures.encoders import gives_texts
from lightning_failures.encoders.base import TextEncoder
from lightning_failures.errors import DataError

_OWN = 64


def check_captions(case: CheckContext) -> Iterator[Finding]:
    """How many captions there are, and whether they are made of words."""
    words, notes = case.modes.captions, case.first
    if words is None:
        yield skipped("captions=None")
        return
    vocabulary = CaptionVocabulary.load(words)
    if notes is None or notes.grader is None or not notes.grader.has_names:
        yield skipped("no batches were read" if notes is None else "classes have no names")
        return
    names = notes.grader.class_names
    odd = [name for name in names if no_words(name)]
    if odd:
        yield warning(
            f"{len(odd)} of {len(names)} class names are no words, like {odd[0]!r}: captions with them mean nothing.",
            "class_names=[...], in words as people use them.",
        )
        return
    grammar = vocabulary.grammar(names[0])
    source = words if isinstance(words, str) else "the vocabulary"
    yield ok(f"{len(grammar.captions())} for {names[0]!r}, from {source}, against {str(grammar.reference)!r}")


def no_words(name: str) -> bool:
    """Whether nobody would call a thing so.

    >>> [no_words(name) for name in ("7", "n01440764", "tench", "Boeing 747", "猫")]
    [True, True, False, False, False]
    """
    return re.search(r"[A-Za-z]{2}|[^\W\d_A-Za-z]", name) is None


def check_known_pictures(case: CheckContext) -> Iterator[Finding]:
    """Pictures whose right text is known, and names of the user's classes for the user's images."""
    cached = case.cached_encoders.get("directions")
    if cached is None:
        yield skipped("no encoder")
        return
    if not gives_texts(cached.encoder):
        yield skipped(f"{cached.encoder.name} knows no texts: directions, but no captions")
        return
    found = [(known, zero_shot_accuracy(cached.encoder, known)) for known in (plain_shapes(), coloured_digits())]
    knows = any(share >= known.needed for known, share in found)
    told = ", ".join(f"{share:.0%} of {known.name}" for known, share in found)
    facts = {known.name: share for known, share in found}
    fits = None
    if own := _own_images(case, cached.encoder):
        hits, asked, classes = own
        chance = asked / classes
        fits = hits > max(2.0, chance + 3 * math.sqrt(chance * (1 - 1 / classes)))
        told += f", {hits / asked:.0%} of {asked} of your images ({classes} class names)"
        facts["own images"] = hits / asked
    message = f"{cached.encoder.name} finds the right text for {told}"
    if knows and fits is not False:
        yield ok(message, **facts)
    elif knows:
        yield warning(
            f"{message}: your classes no better than by chance.",
            "Captions would say little. Use an encoder of your domain, or class names that people would say.",
            **facts,
        )
    elif fits:
        yield warning(
            f"{message}: it fails on pictures that any general CLIP knows.",
            "All right for an encoder of a special domain; else its weights or its preprocessing are wrong.",
            **facts,
        )
    else:
        yield problem(
            f"{message}; {found[0][0].needed:.0%} of one of the first two is needed.",
            "Its weights are untrained or damaged, or do not belong to this architecture, preprocessing or tokenizer.",
            **facts,
        )


def _own_images(case: CheckContext, encoder: TextEncoder) -> tuple[int, int, int] | None:
    """Of some of the user's images, spread over the set: how many are nearest to the name of their class; K."""
    notes, vocabulary = case.first, case.modes.captions
    if notes is None or notes.grader is None or not notes.grader.has_names or vocabulary is None:
        return None
    if notes.grader.task != "multiclass" or not notes.size:
        return None
    names = notes.grader.class_names
    known = CaptionVocabulary.load(vocabulary)
    size = notes.size
    rows = sorted({int(k * size / _OWN) for k in range(min(size, _OWN))})
    try:
        images, labels = _read(case, rows)
    except DataError:  # told of the images already
        return None
    texts = encoder.encode_texts([str(known.grammar(name).reference) for name in names])
    best = (encoder.encode_images(images) @ texts.T).argmax(dim=1)
    return int((best == labels).sum()), len(labels), len(names)


def _read(case: CheckContext, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    notes = case.first
    assert notes is not None
    with isolated_rng():
        record = case.reader.read(None, notes.loader.collate_fn([notes.dataset[row] for row in rows]))
    if record.images is None or record.labels is None:
        raise DataError("no images, or no labels")
    labels = record.labels.argmax(1) if record.labels.ndim == 2 else record.labels
    return case.reader.space(notes.dataset).to_unit(record.images).cpu(), labels.cpu()
