"""Copies of the files of interventions, for a run that must not write where another one does."""

from __future__ import annotations

import contextlib
from pathlib import Path

from lightning_failures.core.atomic import copy_atomically
from lightning_failures.interventions.synthesis.ledger import copy_ledger
from lightning_failures.trainer.run_folder import INTERVENTIONS

START_OF_FORKS = "before_interventions.ckpt"
"""Name of the checkpoint from which forks resume, in the folder of the run."""

RETRAINED = "retrained.ckpt"
"""Name of the checkpoint with the last layer that was refitted after the training, in the folder of the run."""


def copy_interventions(source: Path, target: Path) -> None:
    """Copy what interventions have written to the folder of a run, to which another run may be writing now.

    Raises:
        OSError: The copy cannot be written.
    """
    former = source / INTERVENTIONS
    for place in [one for one in former.glob("*") if one.is_dir()]:
        copy_ledger(place, target / INTERVENTIONS / place.name)
    for path in former.rglob("*"):
        copied = target / path.relative_to(source)
        if path.is_file() and not path.name.startswith(".") and not copied.exists():
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                copy_atomically(path, copied)


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of interventions, and the checkpoint from which forks resume.

    Raises:
        OSError: The copy cannot be written.
    """
    copy_interventions(source, target)
    if (source / START_OF_FORKS).is_file():
        copy_atomically(source / START_OF_FORKS, target / START_OF_FORKS)
