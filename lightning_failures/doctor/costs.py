"""Time, memory and cache space of the analyses, extrapolated from measurements on a few images and classes."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_failures.analysis.analyse import analyse
from lightning_failures.captions.candidates import ClassCaptions, caption_source
from lightning_failures.captions.grammar import NamelessClassError
from lightning_failures.captions.image_to_text import load_captions
from lightning_failures.core.budget import TimeLimit, bytes_of, read_bytes, read_time
from lightning_failures.core.rng import isolated_rng
from lightning_failures.data.grades import Grades
from lightning_failures.doctor.disk import bytes_text, free_bytes, seconds_text, why_not_writable
from lightning_failures.doctor.dry_run import UNSOLVED, CheckContext, LoaderNotes
from lightning_failures.doctor.encoders import weight_bytes
from lightning_failures.doctor.environment import coverage_of, n_analyses
from lightning_failures.doctor.findings import Finding, ok, skipped, warning
from lightning_failures.doctor.interventions import training_loader
from lightning_failures.doctor.methods import added_methods
from lightning_failures.encoders import gives_texts
from lightning_failures.encoders.cache.shard_file import bytes_per_embedding
from lightning_failures.encoders.cache.store import EmbeddingCache, EmbeddingStore, content_keys, embed
from lightning_failures.errors import FailureModesError
from lightning_failures.trainer.example_reader import MAX_REFERENCE

MAX_EXPECTED_SECONDS = 3600.0
"""A longer first validation is a warning."""

CAPTIONED_CLASSES = 50
"""Number of classes with captions, the default of ``analyse``."""

_MEASURED_SECONDS = 0.5  # of measuring, after which no other run is made
_CHEAP_SECONDS = 5.0  # below this estimate, all classes are measured instead of some
_SOME_CLASSES = 4
_ERROR_RATE = 0.3


@dataclass(frozen=True)
class Cost:
    """The cost of all validation loaders together; times are in seconds.

    Attributes:
        examples: Number of validation images.
        training: Number of images of the training set or of pools, which are embedded once.
        in_cache: Share of the images whose embedding is in the cache, estimated from the first batch.
        embedding: Time to embed one image with all encoders.
        known: Time for an image whose embedding is in the cache.
        texts: Time to embed all captions, once.
        fitting: Time of one analysis.
        processes: Number of processes, which share images and classes.
    """

    examples: int
    training: int
    in_cache: float
    embedding: float
    known: float
    texts: float
    fitting: float
    processes: int

    @property
    def first(self) -> float:
        """Time of the first validation. As many captions as images are assumed to be in the cache."""
        images = (self.examples + self.training) * self.embedding / self.processes
        return (1 - self.in_cache) * (images + self.texts) + self.later

    @property
    def later(self) -> float:
        """Time of each later validation."""
        return (self.examples * self.known + self.fitting) / self.processes


def estimate(context: CheckContext) -> Cost | None:
    """Return the estimated cost, from measurements on this machine; None if no batch could be read."""
    if context.first is None or not context.cached_encoders:
        return None
    embedding = known = 0.0
    if context.first.images is not None:
        embedding, known = _embedding_seconds(context, context.first, context.first.images)
    examples, texts, fitting = 0, 0.0, 0.0
    for notes in context.notes:
        size = round(notes.size * coverage_of(context))
        examples += size
        if notes.grader is not None and size:
            some_texts, some_fitting = _analysis_seconds(context, notes, size)
            texts, fitting = max(texts, some_texts), fitting + some_fitting
    share, _ = _known_share(context, EmbeddingCache(context.callback.cache_folder))
    world = context.trainer.world_size
    return Cost(examples, _training_images(context), share, embedding, known, texts, fitting, world)


def _training_images(context: CheckContext) -> int:
    """Return the number of images embedded for interventions, or as the reference."""
    callback = context.callback
    if not callback.interventions and callback.reference == "validation":
        return 0
    try:
        size: int = len(training_loader(context).dataset)  # type: ignore[arg-type]
    except (TypeError, AttributeError, FailureModesError):  # reported by other checks
        return 0
    if not callback.interventions:
        return min(size, MAX_REFERENCE)
    pools: list[Any] = [getattr(one, "pool", None) for one in callback.interventions]
    return size + sum(len(pool) for pool in pools if hasattr(pool, "__len__"))


def _embedding_seconds(context: CheckContext, notes: LoaderNotes, images: Tensor) -> tuple[float, float]:
    """Return the time for one image whose embedding is not in the cache, and for one whose embedding is."""
    space = context.reader.space(notes.dataset)
    encoders = [cached.encoder for cached in context.cached_encoders.values()]

    def run(stores: list[EmbeddingStore]) -> None:
        keys = content_keys(images, salt=repr(space))
        unit = space.to_unit(images) if bool(stores[0].missing(keys).any()) else images
        for encoder, store in zip(encoders, stores, strict=True):
            embed(encoder, store, unit, keys=keys)
            store.get(keys[~store.missing(keys)])

    def fresh() -> list[EmbeddingStore]:
        return [EmbeddingStore(encoder.fingerprint) for encoder in encoders]

    full = fresh()
    run(full)  # the first call of a model is slower
    return _seconds(lambda: run(fresh())) / len(images), _seconds(lambda: run(full)) / len(images)


def _seconds(work: Callable[[], object]) -> float:
    """Return the median time of some runs."""
    times: list[float] = []
    while sum(times) < _MEASURED_SECONDS and len(times) < 9:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def _analysis_seconds(context: CheckContext, notes: LoaderNotes, size: int) -> tuple[float, float]:
    """Return the time to embed all captions, and of an analysis, measured on some classes of the real size."""
    assert notes.grader is not None
    names = notes.grader.class_names
    rows = max(size * (notes.grader.columns or 1 if notes.grader.task == "multilabel" else 1) // len(names), 1)
    captions = _captions(context, names) if notes.grader.has_names else None
    _fit(context, names[:2], min(rows, 60), None)  # compiles the kernels, once a machine

    def measured(classes: int) -> tuple[float, float]:
        start = time.perf_counter()
        if captions is not None:
            for k in range(min(classes, CAPTIONED_CLASSES)):
                with contextlib.suppress(NamelessClassError):  # such a class has no captions
                    captions(k)
        texts = time.perf_counter() - start
        return texts, _fit(context, names[:classes], rows, captions)

    some = min(len(names), _SOME_CLASSES)
    texts, fitting = measured(some)
    share = some / len(names)
    if share < 1 and (texts + fitting) / share < _CHEAP_SECONDS:
        rest, fitting = measured(len(names))
        return texts + rest, fitting
    return texts * min(len(names), CAPTIONED_CLASSES) / some, fitting / share


def _captions(context: CheckContext, names: tuple[str, ...]) -> Callable[[int], ClassCaptions | None] | None:
    cached, words = context.cached_encoders.get("directions"), context.callback.captions
    if cached is None or words is None or not gives_texts(cached.encoder):
        return None
    vocabulary, captioner = load_captions(words)
    return None if vocabulary is None or captioner is not None else caption_source(cached, vocabulary, names)


def _fit(
    context: CheckContext, names: tuple[str, ...], rows: int, captions: Callable[[int], ClassCaptions | None] | None
) -> float:
    """Return the time of an analysis of ``rows`` synthetic examples a class, with a weak failure pattern."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(names) * rows) % len(names)
    failed = torch.rand(len(labels), generator=generator) < _ERROR_RATE
    grades = Grades(
        ids=torch.arange(len(labels)),
        labels=labels,
        predictions=torch.where(failed, (labels + 1) % len(names), labels),
        confidence=torch.rand(len(labels), generator=generator),
        class_names=names,
    )
    values = {
        role: torch.randn(len(labels), cached.encoder.dim, generator=generator) + 0.2 * failed[:, None]
        for role, cached in sorted(context.cached_encoders.items())
    }
    callback = context.callback
    start = time.perf_counter()
    analyse(
        grades,
        values.get("directions"),
        features=values.get("trees"),
        methods=[(method.fitter(callback), values[role]) for method, role in added_methods(context) if role in values],
        captions=captions,
        permutations=callback.permutations,
        n_directions=callback.n_directions,
        doubted=callback.doubted,
    )
    return time.perf_counter() - start


def check_time(context: CheckContext) -> Iterator[Finding]:
    """Estimate how much longer validations will take because of the analyses."""
    if context.problems & {"encoder", "robust encoder", "batches", "images", "captions"}:
        yield skipped(UNSOLVED)
        return
    with isolated_rng():
        cost = estimate(context)
    if cost is None:
        yield skipped("no encoder, or no batch could be read")
        return
    share = f", on {cost.processes} processes" if cost.processes > 1 else ""
    message = (
        f"the first validation takes about {seconds_text(cost.first)} longer ({cost.examples:,} images"
        f"{f' and {cost.training:,} of training' if cost.training else ''}, {cost.in_cache:.0%} in the cache),"
        f" each later one {seconds_text(cost.later)}{share}. Expect half to twice as much, plus the time to read images"
        " and draw pictures."
    )
    facts = {"first_seconds": cost.first, "later_seconds": cost.later, "images_per_second": 1 / (cost.embedding or 1)}
    budget = context.callback.time_budget
    limit = TimeLimit() if budget is None else read_time(budget)
    if limit.share is not None:
        enough = seconds_text(cost.later / limit.share)
        message += f" time_budget={budget} is enough for the later ones if an epoch takes {enough}."
    if limit.seconds is not None and limit.seconds < cost.later:
        message += f" time_budget={budget} is less, so a sample of images and classes is analysed."
        yield warning(message, "Raise time_budget.", **facts)
    elif limit.seconds is not None and limit.seconds < cost.first:
        yield ok(
            f"{message} time_budget={budget} is less than the first takes: it embeds some images, later ones the rest.",
            **facts,
        )
    elif cost.first > MAX_EXPECTED_SECONDS:
        yield warning(message, "Use a GPU (device='cuda'), more processes, or a smaller encoder.", **facts)
    else:
        yield ok(message, **facts)
    count = n_analyses(context)
    if count:
        total = cost.first + (count - 1) * cost.later
        yield ok(f"all {count} analyses of the training together: about {seconds_text(total)}")


def check_memory(context: CheckContext) -> Iterator[Finding]:
    """Estimate the memory of the analysis and of the weights."""
    if context.first is None or not context.cached_encoders:
        yield skipped("no encoder, or no batch could be read")
        return
    encoders = [cached.encoder for cached in context.cached_encoders.values()]
    examples = max(notes.size for notes in context.notes) / context.trainer.world_size
    classes = len(context.first.grader.class_names) if context.first.grader else 1
    analysis = bytes_of(examples, sum(encoder.dim for encoder in encoders), examples / classes)
    weights = sum(map(weight_bytes, encoders))
    message = f"about {bytes_text(analysis)} for the analysis and {bytes_text(weights)} of weights in each process"
    facts = {"analysis_bytes": analysis, "weight_bytes": weights}
    budget, here = context.callback.memory_budget, _available()
    if budget is not None and read_bytes(budget) < analysis:
        yield warning(
            f"{message}; memory_budget={budget} is less, so a sample is analysed.", "Raise memory_budget.", **facts
        )
    elif here is not None and analysis + weights > here / 2:
        yield warning(f"{message}; {bytes_text(here)} are free here", "Set memory_budget.", **facts)
    else:
        yield ok(message + ("" if here is None else f"; {bytes_text(here)} are free here"), **facts)


def _available() -> int | None:
    """Return the available memory in bytes, or None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def check_cache(context: CheckContext) -> Iterator[Finding]:
    """Check that the embedding cache can be written and has room; report the share that it holds already."""
    if not context.cached_encoders:
        yield skipped("no encoder, nothing to cache")
        return
    cache = EmbeddingCache(context.callback.cache_folder)
    if reason := why_not_writable(cache.folder):
        yield warning(
            f"{cache.folder} cannot be written ({reason}): embeddings would be lost with the run.",
            "Choose another folder: cache_folder=..., or LIGHTNING_FAILURES_CACHE.",
        )
        return
    sizes = sum(notes.size for notes in context.notes)
    needed = sum(sizes * bytes_per_embedding(cached.encoder.dim) for cached in context.cached_encoders.values())
    free, (share, damaged) = free_bytes(cache.folder), _known_share(context, cache)
    message = f"{cache.folder}: {bytes_text(needed)} for {sizes:,} images; {share:.0%} of the first batch is cached"
    if damaged:
        message += "; damaged files were removed"
    if free is not None and free < 2 * needed:
        yield warning(f"{message}, but only {bytes_text(free)} are free.", "Choose another folder: cache_folder=...")
    elif needed > cache.max_bytes:
        yield warning(
            f"{message}, more than the cache keeps ({bytes_text(cache.max_bytes)}): every run embeds images again.",
            "Set LIGHTNING_FAILURES_CACHE_SIZE to a larger size, for instance"
            f" '{math.ceil(2 * needed / 2**30)} GiB', or use an encoder with shorter embeddings.",
        )
    else:
        yield ok(message + ("" if free is None else f"; {bytes_text(free)} free"), bytes=needed)


def _known_share(context: CheckContext, cache: EmbeddingCache) -> tuple[float, bool]:
    """Return the cached share of the first batch, and whether the cache had damaged files."""
    notes = context.first
    if notes is None or notes.images is None:
        return 0.0, False
    keys = content_keys(notes.images, salt=repr(context.reader.space(notes.dataset)))
    with warnings.catch_warnings(record=True) as caught:  # damaged files are reported by this check
        warnings.simplefilter("always")
        known = [~cache.store(cached.encoder.fingerprint).missing(keys) for cached in context.cached_encoders.values()]
    return float(torch.stack(known).all(0).double().mean()), bool(caught)
