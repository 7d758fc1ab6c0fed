"""Captions: whether classes have names in words, and the encoder matches images with captions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from time import perf_counter

import torch
from torch import Tensor

from lightning_failures.captions.captioned import MOST_IMAGES
from lightning_failures.captions.image_to_text import Captioner, captioner_name, describe, load_captions
from lightning_failures.captions.recognised import RecognisedVocabulary, recognised
from lightning_failures.core.arrays import finite_rows
from lightning_failures.core.text import clean
from lightning_failures.doctor.disk import seconds_text
from lightning_failures.doctor.dry_run import CheckContext, LoaderNotes
from lightning_failures.doctor.findings import Finding, ok, problem, skipped, warning
from lightning_failures.doctor.reference_images import coloured_digits, coloured_shapes, zero_shot_accuracy
from lightning_failures.encoders import gives_texts
from lightning_failures.encoders.base import TextEncoder
from lightning_failures.encoders.frozen import first_line
from lightning_failures.errors import DataError

_OWN_IMAGES = 64


def check_captions(context: CheckContext) -> Iterator[Finding]:
    """Report the number of captions, and class names that are not words."""
    words, notes = context.callback.captions, context.first
    if words is None:
        yield skipped("captions=None")
        return
    vocabulary, captioner = load_captions(words)
    if notes is None or notes.grader is None or not notes.grader.has_names:
        yield skipped("no batches were read" if notes is None else "classes have no names")
        return
    names = notes.grader.class_names
    odd = [name for name in names if is_code(name)]
    if odd:
        yield warning(
            f"{len(odd)} of {len(names)} class names are not words, such as {odd[0]!r}; their captions mean nothing.",
            "Pass class_names=[...], in everyday words.",
        )
        return
    if captioner is not None:
        yield _described(captioner, context, notes)
        return
    assert vocabulary is not None
    grammar = vocabulary.grammar_of(names[0], names)  # its name is a word
    source = words if isinstance(words, str) else "the vocabulary"
    if isinstance(vocabulary, RecognisedVocabulary):
        source = f"{recognised(tuple(names))} (recognised by the class names)"
    yield ok(f"{len(grammar.captions())} for {names[0]!r}, from {source}, against {str(grammar.reference)!r}")


def _described(captioner: Captioner, context: CheckContext, notes: LoaderNotes) -> Finding:
    """Return what a captioner says of the first image, and how long it takes."""
    name = captioner_name(captioner)
    if notes.images is None:
        return skipped("no images were read")
    image = context.reader.space(notes.dataset).to_unit(notes.images[:1])[0].cpu()
    try:
        describe(captioner, [image])  # the first call loads the model
        start = perf_counter()
        (text,) = describe(captioner, [image])
    except Exception as error:
        return problem(
            f"The captioner {name} fails: {type(error).__name__}: {first_line(error)}", "Call it on an image."
        )
    return ok(
        f"{name} says {clean(text)!r} of the first image, in {seconds_text(perf_counter() - start)}; up to"
        f" {2 * MOST_IMAGES} images a class are captioned, each once a run"
    )


def is_code(name: str) -> bool:
    """Return whether a class name is an id rather than a word.

    >>> [is_code(name) for name in ("7", "n01440764", "tench", "Boeing 747", "猫")]
    [True, True, False, False, False]
    """
    return re.search(r"[A-Za-z]{2}|[^\W\d_A-Za-z]", name) is None


def check_known_pictures(context: CheckContext) -> Iterator[Finding]:
    """Test the encoder on images with known captions, and on the user's images with the names of their classes."""
    cached = context.cached_encoders.get("directions")
    if cached is None:
        yield skipped("no encoder")
        return
    if not gives_texts(cached.encoder):
        yield skipped(f"{cached.encoder.name} has no text tower: directions, but no captions")
        return
    found = [(known, zero_shot_accuracy(cached.encoder, known)) for known in (coloured_shapes(), coloured_digits())]
    is_general = any(share >= known.needed for known, share in found)
    results = ", ".join(f"{share:.0%} of {known.name}" for known, share in found)
    facts = {known.name: share for known, share in found}

    # a captioner of a special domain may fail on general images, so the user's images count as well
    fits_own = None
    if own := _own_images(context, cached.encoder):
        hits, asked, classes = own
        chance = asked / classes
        # three standard errors above chance, and more than two hits
        fits_own = hits > max(2.0, chance + 3 * math.sqrt(chance * (1 - 1 / classes)))
        results += f", {hits / asked:.0%} of {asked} of your images ({classes} class names)"
        facts["own images"] = hits / asked
    message = f"{cached.encoder.name} finds the right caption for {results}"
    if is_general and fits_own is not False:
        yield ok(message, **facts)
    elif is_general:
        yield warning(
            f"{message}; for your classes, it is no better than chance.",
            "Captions would say little. Use an encoder of your domain, or everyday class names.",
            **facts,
        )
    elif fits_own:
        yield warning(
            f"{message}; it fails on images that any general CLIP recognises.",
            "This is fine for an encoder of a special domain; otherwise, its weights or its preprocessing are wrong.",
            **facts,
        )
    else:
        yield problem(
            f"{message}; at least {found[0][0].needed:.0%} of one of the first two is needed.",
            "Its weights are untrained or damaged, or do not match the architecture, preprocessing or tokenizer.",
            **facts,
        )


def _own_images(context: CheckContext, encoder: TextEncoder) -> tuple[int, int, int] | None:
    """Return, for images spread over the set, how many match the name of their class best; their number; and K."""
    notes, vocabulary = context.first, context.callback.captions
    if notes is None or notes.grader is None or not notes.grader.has_names or vocabulary is None:
        return None
    if context.dry_run_trainer is None:
        return None
    if notes.grader.task != "multiclass" or not notes.size:
        return None
    names = notes.grader.class_names
    known, _ = load_captions(vocabulary)
    assert known is not None
    size = notes.size
    rows = sorted({int(k * size / _OWN_IMAGES) for k in range(min(size, _OWN_IMAGES))})
    try:
        batches, labels = _read_examples(context, rows)
    except DataError:  # reported by the check of images
        return None
    references = [known.reference(name, names) for name in names]
    finite = torch.cat([finite_rows(batch) for batch in batches])
    if None in references or not finite.any():
        return None
    texts = encoder.encode_texts([str(reference) for reference in references])
    embeddings = torch.cat([encoder.encode_images(batch[finite_rows(batch)]) for batch in batches])
    best = (embeddings @ texts.T).argmax(dim=1)
    return int((best == labels[finite]).sum()), int(finite.sum()), len(names)


def _read_examples(context: CheckContext, rows: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Return images in [0, 1], in batches (b, C, H, W) of one size, and all their labels (n,)."""
    reader = context.example_reader(0)
    images, labels = [], []
    for part in reader.read(rows):
        if part.record.labels is None:
            raise DataError("no labels")
        images.append(reader.unit_images(part.record).cpu())
        labels.append(part.record.labels.cpu())
    classes = torch.cat(labels)
    return images, classes.argmax(1) if classes.ndim == 2 else classes
