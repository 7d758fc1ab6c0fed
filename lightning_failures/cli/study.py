"""Command ``study``: make a study with people from the files of a run, and score its answers."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning_failures.cli.options import study_options
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import printable, to_bytes
from lightning_failures.data.study_scores import StudyReport
from lightning_failures.errors import ConfigurationError
from lightning_failures.report.html.write import write_html
from lightning_failures.report.run_folder import HTML_FILE, open_run
from lightning_failures.report.studies import STUDIES_FOLDER, study_name, write_study
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
    run = open_run(options.run)
    made = make_study(
        run,
        options.task,
        layer=options.layer,
        features=options.features,
        files=files,
        count=options.count,
        controls=options.controls,
        seed=options.seed,
    )
    path: Path = options.output or Path(f"study-{options.task}.html")
    page = to_bytes(study_page(made))
    _write(path, page)
    controls = sum(question.control for question in made.questions)
    print(printable(f"{len(made.questions)} questions ({controls} of them controls): {path}"))
    name = f"{study_name(made.task, made.id)}.html"
    study = StudyReport(made.task, made.id, made.title, len(made.questions), controls, name)
    _keep(run.folder, study, page)
    print("People answer it in any browser, offline, and send back the file that it downloads. Then:")
    print(printable(f"  lightning-failures study score answers-{options.task}-*.json --run {options.run}"))


def _score(options: Namespace) -> None:
    try:
        answers = [Answers.load(path) for path in options.answers]
    except OSError as error:
        raise ConfigurationError(f"The answers cannot be read: {error}") from error
    scores = score_answers(answers)
    run, study = None, None
    if options.run is not None:
        run = open_run(options.run)
        study = next((one for one in run.studies if one.id == answers[0].study), None)
        if study is None:
            raise ConfigurationError(
                f"{run.folder} holds no record of the study that was answered, {answers[0].study}. Name the run that it"
                " was made of."
            )
    print(printable("\n".join(score_lines(scores))))
    if options.json is not None:
        _write(Path(options.json), to_bytes(json.dumps(scores.to_dict(), indent=2, allow_nan=False) + "\n"))
        print(printable(f"\nJSON: {options.json}"))
    if run is not None and study is not None:
        _keep(run.folder, replace(study, scores=scores))


def _keep(folder: Path, study: StudyReport, page: bytes | None = None) -> None:
    """Keep a study in the folder of its run, whose page shows it; a folder that cannot be written is reported."""
    try:
        if page is not None:
            write_atomically(folder / STUDIES_FOLDER / study.page, page)
        write_study(folder, study)
        if (folder / HTML_FILE).is_file():
            print(printable(f"The page of the run shows the study: {write_html(folder)}"))
    except OSError as error:
        print(printable(f"The study is not kept in the folder of the run ({error})."))


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise ConfigurationError(f"Could not write {path} ({error}). Give another place.") from error
