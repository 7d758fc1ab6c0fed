"""Check the methods that were added to the built-in ones."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_failures.doctor.dry_run import CheckContext
from lightning_failures.doctor.findings import Finding, ok, problem, skipped
from lightning_failures.methods import Method, methods_for

_ROLES = {"encoder": "directions", "robust_encoder": "trees", "penultimate": "penultimate"}
_CHECKED_ELSEWHERE = ("directions", "trees", "sparse")


def added_methods(context: CheckContext) -> list[tuple[Method, str]]:
    """Return the methods that are on, without the built-in ones, each with the role of its encoder."""
    methods = [method for method in methods_for(context.callback) if method.name not in _CHECKED_ELSEWHERE]
    return [(method, _ROLES[method.source]) for method in methods]


def check_methods(context: CheckContext) -> Iterator[Finding]:
    """Ask each additional method whether it can work with its encoder."""
    added = added_methods(context)
    if not added:
        yield skipped("no methods besides failure directions and failure trees")
    for method, role in added:
        cached = context.cached_encoders.get(role)
        if cached is None and method.source != "penultimate":
            yield skipped(f"{method.title or method.name}: its encoder could not be loaded")
            continue
        problems = list(method.problems(None if cached is None else cached.encoder))
        yield from (problem(f"{method.title or method.name}: {sentence}") for sentence in problems)
        if not problems:
            source = "the penultimate features of the model" if cached is None else cached.encoder.name
            yield ok(f"{method.title or method.name} works with {source}")
