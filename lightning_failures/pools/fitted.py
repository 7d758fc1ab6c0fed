"""The directions of a run, read from its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.directions.result import DIRECTIONS_FILE, FailureDirections
from lightning_failures.errors import ConfigurationError, DataError


@dataclass(frozen=True, eq=False)
class FittedDirections:
    """The directions of a run, with the class names and the encoder that a pool must match.

    Attributes:
        directions: The SVMs.
        path: The file they were read from.
        class_names: Class names of the run; None if the file has no report next to it.
        encoder: Fingerprint of the encoder whose embeddings the SVMs were fitted to; None without a report.
        classes: Findings of the run about each class; empty without a report.
    """

    directions: FailureDirections
    path: Path
    class_names: tuple[str, ...] | None = None
    encoder: str | None = None
    classes: tuple[ClassReport, ...] = ()


def load_fitted(path: Path) -> FittedDirections:
    """Read the directions of a run, and its report if there is one in the same folder.

    Args:
        path: ``directions.safetensors``, or a folder that contains it: the log folder of a run, or its ``failures/``.

    Raises:
        ConfigurationError: The file does not exist, is damaged, or has no directions.
    """
    candidates = [path / DIRECTIONS_FILE, path / "failures" / DIRECTIONS_FILE] if path.is_dir() else [path]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise ConfigurationError(
            f"No {DIRECTIONS_FILE} in {path}. A run keeps the file of its last analysis in <log_dir>/failures/, next to"
            " report.json."
        )
    try:
        directions = FailureDirections.load(found)
    except (DataError, OSError) as error:
        raise ConfigurationError(f"--directions {found}: {error}") from error
    if not len(directions.classes):
        raise ConfigurationError(f"--directions {found}: no class has a direction, so the pool cannot be scored.")
    try:
        report = FailureReport.from_json((found.parent / "report.json").read_bytes())
    except (DataError, OSError):
        return FittedDirections(directions, found)
    names = tuple(entry.name for entry in report.classes)
    return FittedDirections(directions, found, names, report.encoder_fingerprint, report.classes)
