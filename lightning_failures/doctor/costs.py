"""What a validation will cost: a few images are embedded, some classes fitted, and the rest is arithmetic."""

from __future__ import annotations

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
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.core.budget import TimeLimit, bytes_of, read_bytes, read_time
from lightning_failures.core.rng import isolated_rng
from lightning_failures.data.grades import Grades
from lightning_failures.doctor.disk import bytes_text, free_bytes, seconds_text, why_not_writable
from lightning_failures.doctor.dry_run import UNSOLVED, CheckContext, LoaderNotes
from lightning_failures.doctor.encoders import weight_bytes
from lightning_failures.doctor.environment import analyses, share_seen
from lightning_failures.doctor.findings import Finding, ok, skipped, warning
from lightning_failures.doctor.interventions import training_loader
from lightning_failures.encoders import gives_texts
from lightning_failures.encoders.cache.store import EmbeddingCache, EmbeddingStore, content_keys, embed
from lightning_failures.errors import FailureModesError
from lightning_failures.trainer.batch_reader import MAX_REFERENCE

LONG = 3600.0  # seconds that nobody should be surprised by
CAPTIONED = 50  # classes, the default of ``analyse``
_ENOUGH = 0.5  # seconds of measuring
_CHEAP = 5.0  # seconds for which all classes are measured in place of some
_SOME_CLASSES = 4
_FAILING = 0.3
_KEY_BYTES = 20


@dataclass(frozen=True)
class Cost:
    """Seconds, for all validation loaders together.

    Attributes:
        examples: Images.
        training: Images of the training set, or of pools, that are embedded too, once.
        in_cache: Share of the images whose embedding is in the cache, by the first batch.
        embedding: To embed one image with all encoders.
        known: For an image whose embedding is in the cache.
        texts: To embed all captions, once.
        fitting: One analysis.
        processes: They share out images and classes.
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
        """The first validation. Captions are taken to be in the cache as far as images are."""
        images = (self.examples + self.training) * self.embedding / self.processes
        return (1 - self.in_cache) * (images + self.texts) + self.later

    @property
    def later(self) -> float:
        """Every other one."""
        return (self.examples * self.known + self.fitting) / self.processes


def estimate(case: CheckContext) -> Cost | None:
    """Measure here what can be measured; None where nothing could be read."""
    if case.first is None or not case.cached_encoders:
        return None
    embedding = known = 0.0
    if case.first.images is not None:
        embedding, known = _embedding_seconds(case, case.first, case.first.images)
    examples, texts, fitting = 0, 0.0, 0.0
    for notes in case.notes:
        size = round(notes.size * share_seen(case))
        examples += size
        if notes.grader is not None and size:
            some_texts, some_fitting = _analysis_seconds(case, notes, size)
            texts, fitting = max(texts, some_texts), fitting + some_fitting
    share, _ = _known_share(case, EmbeddingCache(case.modes.cache_folder))
    world = case.trainer.world_size
    return Cost(examples, _training_images(case), share, embedding, known, texts, fitting, world)


def _training_images(case: CheckContext) -> int:
    """How many are embedded for interventions, or as the reference."""
    modes = case.modes
    if not modes.interventions and modes.reference == "validation":
        return 0
    try:
        size: int = len(training_loader(case).dataset)  # type: ignore[arg-type]
    except (TypeError, AttributeError, FailureModesError):  # told by others
        return 0
    if not modes.interventions:
        return min(size, MAX_REFERENCE)
    pools: list[Any] = [getattr(one, "pool", None) for one in modes.interventions]
    return size + sum(len(pool) for pool in pools if hasattr(pool, "__len__"))


def _embedding_seconds(case: CheckContext, notes: LoaderNotes, images: Tensor) -> tuple[float, float]:
    """For one image, unknown and known."""
    space = case.reader.space(notes.dataset)
    encoders = [cached.encoder for cached in case.cached_encoders.values()]

    def run(stores: list[EmbeddingStore]) -> None:
        keys = content_keys(images, salt=repr(space))
        unit = space.to_unit(images) if bool(stores[0].missing(keys).any()) else images
        for encoder, store in zip(encoders, stores, strict=True):
            embed(encoder, store, unit, keys=keys)
            store.get(keys)

    def fresh() -> list[EmbeddingStore]:
        return [EmbeddingStore(encoder.fingerprint) for encoder in encoders]

    full = fresh()
    run(full)  # the first call of a model takes longer
    return _seconds(lambda: run(fresh())) / len(images), _seconds(lambda: run(full)) / len(images)


def _seconds(work: Callable[[], object]) -> float:
    """The median of some runs."""
    times: list[float] = []
    while sum(times) < _ENOUGH and len(times) < 9:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def _analysis_seconds(case: CheckContext, notes: LoaderNotes, size: int) -> tuple[float, float]:
    """To embed the captions, and to fit, both from some classes of the real size."""
    assert notes.grader is not None
    names = notes.grader.class_names
    rows = max(size * (notes.grader.columns or 1 if notes.grader.task == "multilabel" else 1) // len(names), 1)
    captions = _captions(case, names) if notes.grader.has_names else None
    _fit(case, names[:2], min(rows, 60), None)  # compiles the inner loops, once a machine

    def measured(classes: int) -> tuple[float, float]:
        start = time.perf_counter()
        if captions is not None:
            for k in range(min(classes, CAPTIONED)):
                captions(k)
        texts = time.perf_counter() - start
        return texts, _fit(case, names[:classes], rows, captions)

    some = min(len(names), _SOME_CLASSES)
    texts, fitting = measured(some)
    share = some / len(names)
    if share < 1 and (texts + fitting) / share < _CHEAP:
        rest, fitting = measured(len(names))
        return texts + rest, fitting
    return texts * min(len(names), CAPTIONED) / some, fitting / share


def _captions(case: CheckContext, names: tuple[str, ...]) -> Callable[[int], ClassCaptions | None] | None:
    cached, words = case.cached_encoders.get("directions"), case.modes.captions
    if cached is None or words is None or not gives_texts(cached.encoder):
        return None
    return caption_source(cached, CaptionVocabulary.load(words), names)


def _fit(
    case: CheckContext, names: tuple[str, ...], rows: int, captions: Callable[[int], ClassCaptions | None] | None
) -> float:
    """Seconds of an analysis of ``rows`` examples a class, of which some fail by a weak pattern."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(names) * rows) % len(names)
    failed = torch.rand(len(labels), generator=generator) < _FAILING
    grades = Grades(
        ids=torch.arange(len(labels)),
        labels=labels,
        predictions=torch.where(failed, (labels + 1) % len(names), labels),
        confidence=torch.rand(len(labels), generator=generator),
        class_names=names,
    )
    embedded, featured = (
        None
        if role not in case.cached_encoders
        else torch.randn(len(labels), case.cached_encoders[role].encoder.dim, generator=generator)
        + 0.2 * failed[:, None]
        for role in ("directions", "trees")
    )
    modes = case.modes
    start = time.perf_counter()
    analyse(
        grades,
        embedded,
        features=featured,
        captions=captions,
        permutations=modes.permutations,
        n_directions=modes.n_directions,
    )
    return time.perf_counter() - start


def check_time(case: CheckContext) -> Iterator[Finding]:
    """How long validations will take, beside what the model itself needs."""
    if case.problems & {"encoder", "robust encoder", "batches", "images", "captions"}:
        yield skipped(UNSOLVED)
        return
    with isolated_rng():
        cost = estimate(case)
    if cost is None:
        yield skipped("no encoder, or no batch could be read")
        return
    share = f", on {cost.processes} processes" if cost.processes > 1 else ""
    message = (
        f"the first validation takes about {seconds_text(cost.first)} longer ({cost.examples:,} images"
        f"{f' and {cost.training:,} of training' if cost.training else ''}, {cost.in_cache:.0%} in the cache),"
        f" each later one {seconds_text(cost.later)}{share}. Expect half to twice that, without reading and drawing"
        " images."
    )
    facts = {"first_seconds": cost.first, "later_seconds": cost.later, "images_per_second": 1 / (cost.embedding or 1)}
    budget = case.modes.time_budget
    limit = TimeLimit() if budget is None else read_time(budget)
    if limit.share is not None:
        enough = seconds_text(cost.later / limit.share)
        message += f" time_budget={budget} is enough for these if an epoch takes {enough}."
    if limit.seconds is not None and limit.seconds < cost.later:
        message += f" time_budget={budget} is less: a sample of images and classes is looked at."
        yield warning(message, "Raise time_budget.", **facts)
    elif limit.seconds is not None and limit.seconds < cost.first:
        yield ok(f"{message} time_budget={budget} is less than the first: it embeds a part, later ones more.", **facts)
    elif cost.first > LONG:
        yield warning(message, "A GPU (device='cuda'), more processes, or a smaller encoder.", **facts)
    else:
        yield ok(message, **facts)
    count = analyses(case)
    if count:
        total = cost.first + (count - 1) * cost.later
        yield ok(f"all {count} analyses of the training together: about {seconds_text(total)}")


def check_memory(case: CheckContext) -> Iterator[Finding]:
    """What the first process will hold."""
    if case.first is None or not case.cached_encoders:
        yield skipped("no encoder, or no batch could be read")
        return
    encoders = [cached.encoder for cached in case.cached_encoders.values()]
    examples = max(notes.size for notes in case.notes) / case.trainer.world_size
    classes = len(case.first.grader.class_names) if case.first.grader else 1
    analysis = bytes_of(examples, sum(encoder.dim for encoder in encoders), examples / classes)
    weights = sum(map(weight_bytes, encoders))
    message = f"about {bytes_text(analysis)} for the analysis and {bytes_text(weights)} of weights in each process"
    facts = {"analysis_bytes": analysis, "weight_bytes": weights}
    budget, here = case.modes.memory_budget, _available()
    if budget is not None and read_bytes(budget) < analysis:
        yield warning(
            f"{message}; memory_budget={budget} is less, so a sample is analysed.", "Raise memory_budget.", **facts
        )
    elif here is not None and analysis + weights > here / 2:
        yield warning(f"{message}; {bytes_text(here)} are free here", "Set memory_budget.", **facts)
    else:
        yield ok(message + ("" if here is None else f"; {bytes_text(here)} are free here"), **facts)


def _available() -> int | None:
    """Free memory, where the system tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def check_cache(case: CheckContext) -> Iterator[Finding]:
    """Where embeddings are kept, whether there is room, and what is known already."""
    if not case.cached_encoders:
        yield skipped("no encoder, nothing to keep")
        return
    cache = EmbeddingCache(case.modes.cache_folder)
    if reason := why_not_writable(cache.folder):
        yield warning(
            f"{cache.folder} cannot be written ({reason}): embeddings would be lost with the run.",
            "Name another folder: cache_folder=..., or LIGHTNING_FAILURES_CACHE.",
        )
        return
    sizes = sum(notes.size for notes in case.notes)
    needed = sum(sizes * (2 * cached.encoder.dim + _KEY_BYTES) for cached in case.cached_encoders.values())
    free, (share, damaged) = free_bytes(cache.folder), _known_share(case, cache)
    message = f"{cache.folder}: {bytes_text(needed)} for {sizes:,} images; of the first batch {share:.0%} are there"
    if damaged:
        message += "; damaged files were removed"
    if free is not None and free < 2 * needed:
        yield warning(f"{message}, but only {bytes_text(free)} are free.", "Name another folder: cache_folder=...")
    elif needed > cache.max_bytes:
        yield warning(
            f"{message}, more than the {bytes_text(cache.max_bytes)} that it keeps: every run embeds anew.",
            "A smaller validation set, or an encoder with shorter embeddings.",
        )
    else:
        yield ok(message + ("" if free is None else f"; {bytes_text(free)} free"), bytes=needed)


def _known_share(case: CheckContext, cache: EmbeddingCache) -> tuple[float, bool]:
    """Of the images of the first batch, and whether the cache had damaged files."""
    notes = case.first
    if notes is None or notes.images is None:
        return 0.0, False
    keys = content_keys(notes.images, salt=repr(case.reader.space(notes.dataset)))
    with warnings.catch_warnings(record=True) as caught:  # damaged files: told here
        warnings.simplefilter("always")
        known = [~cache.store(cached.encoder.fingerprint).missing(keys) for cached in case.cached_encoders.values()]
    return float(torch.stack(known).all(0).double().mean()), bool(caught)
