"""The directions of a run, as its files tell of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_failures.data.report import FailureReport
from lightning_failures.directions.result import DIRECTIONS_FILE, FailureDirections
from lightning_failures.errors import ConfigurationError, DataError


@dataclass(frozen=True, eq=False)
class FittedDirections:
    """Directions, and what must fit them.

    Attributes:
        directions: The SVMs.
        path: Where they were read.
        class_names: Of the run; None where no report lies beside the file.
        encoder: Fingerprint of the encoder whose embeddings they were fitted to; None likewise.
    """

    directions: FailureDirections
    path: Path
    class_names: tuple[str, ...] | None = None
    encoder: str | None = None


def load_fitted(path: Path) -> FittedDirections:
    """Read the directions of a run, and the report beside them.

    Args:
        path: ``directions.safetensors``, or a folder that holds one: the log folder of a run, or its ``failures/``.

    Raises:
        ConfigurationError: There are none, or they are damaged.
    """
    places = [path / DIRECTIONS_FILE, path / "failures" / DIRECTIONS_FILE] if path.is_dir() else [path]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigurationError(
            f"No {DIRECTIONS_FILE} in {path}. A run keeps that of its last analysis in <log_dir>/failures/, beside"
            " report.json."
        )
    try:
        directions = FailureDirections.load(found)
    except (DataError, OSError) as error:
        raise ConfigurationError(f"--directions {found}: {error}") from error
    if not len(directions.classes):
        raise ConfigurationError(f"--directions {found}: no class has a direction, so there is nothing to score with.")
    try:
        report = FailureReport.from_json((found.parent / "report.json").read_bytes())
    except (DataError, OSError):
        return FittedDirections(directions, found)
    names = tuple(entry.name for entry in report.classes)
    return FittedDirections(directions, found, names, report.encoder_fingerprint)
