"""The studies with people that were made of a run: their pages and scores, in a folder of the run.

::

    <log_dir>/failures/studies/
        describe-3f2a81c09d4e.html       the page of a study
        describe-3f2a81c09d4e.json       its record, with the scores of its answers
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.serialization import from_jsonable, read_json
from lightning_failures.core.text import to_bytes
from lightning_failures.data.study_scores import StudyReport
from lightning_failures.errors import DataError

STUDIES_FOLDER = "studies"
MAX_STUDIES = 50
MAX_RECORD_BYTES = 1 << 22
"""Most studies of a run that are read, and limit of one record."""

_PAGE = re.compile(r"[A-Za-z0-9_-]{1,80}\.html")


def study_name(task: str, study: str) -> str:
    """Return the name of the files of a study, without an ending.

    >>> study_name("describe", "3f2a81c09d4e77aa")
    'describe-3f2a81c09d4e'
    """
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"{task}-{study[:12]}")


def write_study(folder: Path, study: StudyReport) -> Path:
    """Write the record of a study into the folder of its run, and return the path.

    Raises:
        OSError: The folder cannot be written.
    """
    path = folder / STUDIES_FOLDER / f"{study_name(study.task, study.id)}.json"
    write_atomically(path, to_bytes(json.dumps(study.to_dict(), indent=1, allow_nan=False) + "\n"))
    return path


def read_studies(folder: Path, notes: list[str]) -> tuple[StudyReport, ...]:
    """Return the studies of a run by task; those that cannot be read are left out, with a note.

    Args:
        folder: The folder of the run.
        notes: What could not be read is added.
    """
    found = []
    for path in sorted((folder / STUDIES_FOLDER).glob("*.json"))[:MAX_STUDIES]:
        try:
            found.append(_read(path))
        except (DataError, OSError) as error:
            notes.append(f"The study {path.name} is left out: {error}")
    return tuple(found)


def _read(path: Path) -> StudyReport:
    if path.stat().st_size > MAX_RECORD_BYTES:
        raise DataError("the file is too large")
    study: StudyReport = from_jsonable(StudyReport, read_json(path.read_bytes()))
    if not _PAGE.fullmatch(study.page):  # the page of the run links to it
        raise DataError("its page is no file name")
    return study
