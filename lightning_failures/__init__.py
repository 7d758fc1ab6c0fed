"""Tells, while a vision model trains, on which kinds of images it fails, in words and pictures, and how sure that is.

The files in the order in which data flow: ``records``, ``grading``, ``encoders``, ``cache``, ``directions``, ``trees``,
``captions``, ``metrics``, ``visuals``, ``analysis``, ``sinks``, ``adapters``, ``callback``, ``cli``. The map is in
``docs/architecture.md``.
"""

from lightning_failures.analysis.analyse import analyse
from lightning_failures.callback import FailureModes
from lightning_failures.data.grades import BatchRecord, Grades
from lightning_failures.data.report import FailureReport
from lightning_failures.errors import FailureModesError

__all__ = ["BatchRecord", "FailureModes", "FailureModesError", "FailureReport", "Grades", "analyse"]
