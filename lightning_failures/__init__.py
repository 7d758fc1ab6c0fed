"""Find, caption and track the failure modes of an image classifier while it trains, with uncertainty estimates.

The public names below are imported when they are used: ``import lightning_failures`` alone loads neither torch nor
Lightning. Each room (sub-package) has a public face, its ``__all__``; all other modules are private. The map of the
rooms is in ``docs/architecture.md``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_failures.core.moved import install

if TYPE_CHECKING:
    from lightning_failures.analysis import analyse
    from lightning_failures.callback import FailureModes
    from lightning_failures.data.grades import BatchRecord, Grades
    from lightning_failures.data.report import FailureReport
    from lightning_failures.errors import FailureModesError

__all__ = ["BatchRecord", "FailureModes", "FailureModesError", "FailureReport", "Grades", "analyse"]

_HOMES = {
    "BatchRecord": "data.grades",
    "FailureModes": "callback",
    "FailureModesError": "errors",
    "FailureReport": "data.report",
    "Grades": "data.grades",
    "analyse": "analysis",
}
_ROOMS = {
    *("analysis", "bundled", "callback", "captions", "cli", "data", "directions", "doctor", "encoders", "errors"),
    *("generators", "interventions", "methods", "pools", "report", "studies", "trees", "writers"),
}

install()

if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
            if name == "analyse" and "IPython" in sys.modules:  # results show themselves in notebooks
                import_module(f"{__name__}.report")
            globals()[name] = value
            return value
        if name in _ROOMS:  # as attributes of the package, without an import of their own
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_ROOMS})
