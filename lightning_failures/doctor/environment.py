"""Installed versions, monitored keys, schedule, and loggers with their limits."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement

from lightning_failures.doctor.disk import why_not_writable
from lightning_failures.doctor.dry_run import CheckContext
from lightning_failures.doctor.findings import Finding, ok, problem, warning
from lightning_failures.methods import methods_for
from lightning_failures.trainer.metric_keys import (
    DECISION_KEYS,
    GRADE_AGGREGATES,
    LOADER,
    PREFIX,
    KeyLog,
    aggregates,
)
from lightning_failures.trainer.pictures.classes_and_leaves import BROWSED
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.run_folder import failures_folder
from lightning_failures.writers.base import WriterLimits
from lightning_failures.writers.registry import writer_for

LIGHTNING_PACKAGES = ("lightning", "pytorch-lightning")
NAMESPACES = ("lightning.pytorch", "pytorch_lightning")
MALICIOUS_VERSIONS = ("2.6.2", "2.6.3")
TREE_LEAVES = 5
"""Most leaves of a tree with pictures: valid leaves hold more than a fifth of the failures each."""
TREE_FEATURES = 7
"""Most features of a tree of depth 3."""
HIGHER_IS_BETTER = {"accuracy", "coverage", "shared/p_value", "decision/accuracy", "decision/worst_class_accuracy"}


def check_versions(context: CheckContext) -> Iterator[Finding]:
    """Check installed versions, and that classes come from one of the two Lightning packages only."""
    installed = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    try:
        required = metadata.requires("lightning-failures") or []
    except metadata.PackageNotFoundError:
        required = []
    yield from judge_versions(installed, required)
    trainer = context.trainer
    parts: list[Any] = [context.model, context.datamodule, *trainer.callbacks, *trainer.loggers]  # type: ignore[attr-defined]
    foreign = [type(part).__name__ for part in parts if _namespaces(part) == {"pytorch_lightning"}]
    if foreign:
        yield problem(
            f"The Trainer is that of lightning.pytorch, but {', '.join(foreign)} derive from pytorch_lightning,"
            " whose classes are not compatible with it.",
            "Import everything from the same package.",
        )


def judge_versions(installed: Mapping[str, str], required: Iterable[str]) -> Iterator[Finding]:
    """Compare installed versions, by the name of the distribution, with requirements.

    >>> [one.status for one in judge_versions({"lightning": "2.6.3"}, ["lightning>=2.4,!=2.6.3"])]
    ['problem']
    """
    bad = [f"{name} {installed[name]}" for name in LIGHTNING_PACKAGES if installed.get(name) in MALICIOUS_VERSIONS]
    if bad:
        yield problem(
            f"{' and '.join(bad)}: this release was a malicious upload that stole credentials (GHSA-w37p-236h-pfx3).",
            "Treat the credentials of this machine as stolen, and install another release.",
        )
        return
    unmet = []
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(requirement.name.lower().replace("_", "-"))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{requirement.name}{requirement.specifier} (here: {version or 'not installed'})")
    if unmet:
        yield problem(
            f"Unmet requirements of lightning-failures: {', '.join(unmet)}.", "pip install -U lightning-failures"
        )
        return
    shown = ("lightning", "torch", "open-clip-torch", "scikit-learn", "numpy")
    versions = {name: installed[name] for name in shown if name in installed}
    yield ok(", ".join(f"{name} {version}" for name, version in versions.items()), **versions)


def _namespaces(part: Any) -> set[str]:
    """Return the Lightning packages from which the class of an object derives."""
    modules = [f"{base.__module__}." for base in type(part).__mro__]
    prefixes = [name for module in modules for name in NAMESPACES if module.startswith(f"{name}.")]
    return set(prefixes)


def check_monitors(context: CheckContext) -> Iterator[Finding]:
    """Check the keys that checkpoints and early stopping monitor."""
    callback = context.callback
    log = KeyLog(worst_k=callback.worst_k, min_coverage=callback.min_coverage, say_once=lambda *_: None)
    log.check(
        context.trainer,
        [method.name for method in methods_for(callback)],
        interventions=bool(callback.interventions),
    )
    keys = sorted(log.monitored)
    for other in context.trainer.callbacks:  # type: ignore[attr-defined]
        monitor, mode = getattr(other, "monitor", None), getattr(other, "mode", None)
        best = _best(monitor) if isinstance(monitor, str) and monitor.startswith(PREFIX) else None
        if best is not None and mode not in (best, None):
            yield warning(
                f"{type(other).__name__}(monitor={monitor!r}, mode={mode!r}) keeps the worst model: for this key,"
                f" the {best}imum is best.",
                f"Set mode: {best}.",
            )
    yield ok(f"monitored: {', '.join(keys)}" if keys else "no callback monitors a key of failures/", keys=keys)


def _best(key: str) -> str | None:
    name = key.removeprefix(PREFIX).split(LOADER)[0]
    if name in HIGHER_IS_BETTER:
        return "max"
    return "min" if name in aggregates() or name in DECISION_KEYS else None


def n_analyses(context: CheckContext) -> int | None:
    """Return the number of analyses in ``fit``; None if the length of the training is unknown."""
    trainer, callback = context.trainer, context.callback
    if trainer.fast_dev_run or not trainer.max_epochs or trainer.max_epochs < 0:  # type: ignore[attr-defined]
        return None
    epochs = trainer.max_epochs // (trainer.check_val_every_n_epoch or 1)
    if callback.every_n_validations is not None:
        return epochs // callback.every_n_validations
    return min(epochs, trainer.max_epochs // callback.every_n_epochs)


def check_schedule(context: CheckContext) -> Iterator[Finding]:
    """Check how many analyses are made, and on how much of the validation set."""
    trainer, callback, count = context.trainer, context.callback, n_analyses(context)
    if count == 0:
        yield warning(
            f"No analysis in {trainer.max_epochs} epochs: every_n_epochs={callback.every_n_epochs},"
            f" every_n_validations={callback.every_n_validations}, check_val_every_n_epoch="
            f"{trainer.check_val_every_n_epoch}.",
            "Lower every_n_epochs or every_n_validations.",
        )
        return
    limit, part = trainer.limit_val_batches, coverage_of(context)
    if limit == 0:
        yield problem("limit_val_batches=0: there is no validation, and so no analysis.", "Remove limit_val_batches.")
    elif part < callback.min_coverage:
        yield warning(
            f"limit_val_batches={limit} shows {part:.0%} of the validation set, less than"
            f" min_coverage={callback.min_coverage:.0%}: analyses are reported, but steer nothing.",
            "Raise limit_val_batches, or lower min_coverage.",
        )
    else:
        number = "as long as the training runs" if count is None else f"{count} in {trainer.max_epochs} epochs"
        yield ok(f"analyses: {number}", analyses=count)


def coverage_of(context: CheckContext) -> float:
    """Return the share of the validation set that a validation sees; 1 if unknown."""
    limit = context.trainer.limit_val_batches
    if isinstance(limit, float):
        return limit
    try:
        return min(1.0, limit / len(context.notes[0].loader))
    except (IndexError, TypeError, NotImplementedError, ZeroDivisionError):
        return 1.0


def check_loggers(context: CheckContext) -> Iterator[Finding]:
    """Check where reports are written, and how much of them each logger shows."""
    trainer, callback = context.trainer, context.callback
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        folder, _ = failures_folder(trainer, Communicator(), run_id="RUN")
        reason = why_not_writable(folder)
        if reason:
            yield problem(f"Reports go to {folder}, which cannot be written ({reason}).", "Choose another save_dir.")
        else:
            yield ok(f"reports, pictures: {folder}", folder=str(folder))
    classes = len(context.first.grader.class_names) if context.first and context.first.grader else None
    keys = _scalars(context)
    pictures = _pictures(context, classes) if callback.pictures else 0
    for logger in trainer.loggers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reported below, in other words
            writer = writer_for(logger, context.folder)
        if writer is not None:
            yield judge_limits(writer.limits(), context, keys=keys, pictures=pictures, classes=classes)
        elif type(logger).__name__ != "DummyLogger":
            yield warning(f"{type(logger).__name__} gets up to {keys} scalars; it shows no reports and no pictures.")
    if not trainer.loggers:
        yield ok("no logger: scalars are not shown anywhere, reports are on disk")


def _scalars(context: CheckContext) -> int:
    """Return the most keys that one analysis logs."""
    of_methods = sum(len(method.aggregates) for method in methods_for(context.callback))
    parts = 2 * len(DECISION_KEYS) if context.callback.interventions else 0  # of the report and of the decision part
    return len(GRADE_AGGREGATES) + of_methods + parts + 4 * context.callback.worst_k


def _pictures(context: CheckContext, classes: int | None) -> int:
    """Return the most pictures of one analysis: of the worst classes, and of rules and features of as many trees."""
    callback = context.callback
    of_classes = min(callback.worst_k, classes or callback.worst_k) if callback.encoder is not None else 0
    trees = min(callback.worst_k, 2 * (classes or callback.worst_k)) if callback.robust_encoder is not None else 0
    return of_classes + trees * (TREE_LEAVES + TREE_FEATURES)


def judge_limits(
    limits: WriterLimits, context: CheckContext, *, keys: int, pictures: int, classes: int | None
) -> Finding:
    """Compare what an analysis produces with what a writer shows of it.

    Args:
        limits: Declared by the writer.
        context: The configuration.
        keys: The most scalars of an analysis.
        pictures: The most pictures of an analysis.
        classes: The number of classes, or None if it is unknown.
    """
    note = f" ({limits.note})" if limits.note else ""
    if limits.pictures == 0:
        return ok(f"{limits.name}{note}: at most {keys} scalars an analysis; no pictures, which are on disk")
    counts = f"{limits.name}{note}: at most {keys} scalars and {pictures} pictures an analysis"
    if limits.pictures is not None and pictures > limits.pictures:
        return warning(f"{counts}; it shows the first {limits.pictures}, the rest are on disk.", "Lower worst_k.")
    if limits.classes is not None and classes is not None and classes > limits.classes:
        return warning(f"{counts}; its table holds the worst {limits.classes:,} of {classes:,} classes.")
    return ok("; ".join([counts, *_kept_drawings(limits, context), *_shown_examples(limits, context)]))


def _kept_drawings(limits: WriterLimits, context: CheckContext) -> list[str]:
    """Return a note if pictures are drawn more often during the run than a writer shows."""
    count, every = n_analyses(context), context.callback.pictures_every_n
    drawings = 1 + (0 if count is None or every is None else count // every)
    if limits.drawings is None or drawings <= limits.drawings:
        return []
    return [f"it shows about {limits.drawings} of the {drawings} drawings of a picture, the rest are on disk"]


def _shown_examples(limits: WriterLimits, context: CheckContext) -> list[str]:
    """Return a note on how many single examples a writer shows."""
    possible = context.callback.encoder is not None or not limits.examples_need_embeddings
    count = BROWSED if limits.examples is None else min(limits.examples, BROWSED)
    return (
        [f"up to {count:,} examples in {limits.examples_in}"]
        if context.callback.pictures and possible and count
        else []
    )
