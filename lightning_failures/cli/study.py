"""Command ``study``: make a study with people from the files of a run, and score its answers."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from lightning_failures.cli.options import study_options
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import printable, to_bytes
from lightning_failures.errors import ConfigurationError
from lightning_failures.report.run_folder import open_run
from lightning_failures.studies.folder import make_study
from lightning_failures.studies.page import study_page
from lightning_failures.studies.records import Answers
from lightning_failures.studies.scoring import score_answers, score_lines
from lightning_failures.writers.export import files_below


def study(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures study``."""
    options = study_options(arguments)
    if options.action == "make":
        _make(options)
    else:
        _score(options)


def _make(options: Namespace) -> None:
    files = {} if options.images is None else files_below(options.images)
    made = make_study(
        open_run(options.run),
        options.task,
        layer=options.layer,
        features=options.features,
        files=files,
        count=options.count,
        controls=options.controls,
        seed=options.seed,
    )
    path: Path = options.output or Path(f"study-{options.task}.html")
    _write(path, to_bytes(study_page(made)))
    controls = sum(question.control for question in made.questions)
    print(printable(f"{len(made.questions)} questions ({controls} of them controls): {path}"))
    print("People answer it in any browser, offline, and send back the file that it downloads. Then:")
    print(f"  lightning-failures study score answers-{options.task}-*.json")


def _score(options: Namespace) -> None:
    try:
        answers = [Answers.load(path) for path in options.answers]
    except OSError as error:
        raise ConfigurationError(f"The answers cannot be read: {error}") from error
    scores = score_answers(answers)
    print(printable("\n".join(score_lines(scores))))
    if options.json is not None:
        _write(Path(options.json), to_bytes(json.dumps(scores.to_dict(), indent=2, allow_nan=False) + "\n"))
        print(printable(f"\nJSON: {options.json}"))


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise ConfigurationError(f"Could not write {path} ({error}). Give another place.") from error
