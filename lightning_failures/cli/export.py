"""Command ``export``: the findings of a run in the files of other tools, from the files of the run alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_failures.cli.options import export_options
from lightning_failures.core.text import printable
from lightning_failures.errors import ConfigurationError
from lightning_failures.regression.pin import load_pins
from lightning_failures.report.run_folder import open_run
from lightning_failures.writers.export import Exported, export_run

_NEXT = {
    "fiftyone": 'fiftyone.Dataset.from_dir("{folder}/fiftyone", dataset_type=fiftyone.types.FiftyOneDataset)',
    "label-studio": "a project with the labelling configuration label_studio.xml, then Import: label_studio.json",
    "cleanlab": 'pandas.read_csv("{folder}/cleanlab.csv"), with the columns of Datalab.get_issues("label")',
}
_MOST_FILES = 5


def export(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures export``."""
    options = export_options(arguments)
    pins = load_pins(options.pins) if options.pins else ()
    run = open_run(options.run)
    try:
        found = export_run(run, options.output, options.to, images=options.images, pins=pins, every_example=options.all)
    except OSError as error:
        raise ConfigurationError(
            f"Could not write to {options.output} ({error}). Give another place: --output FOLDER."
        ) from error
    print(printable("\n".join(_lines(found, options.to, options.output))))


def _lines(exported: Exported, to: str, folder: Path) -> list[str]:
    """Return what was written, and how to open it."""
    found = exported.findings
    counts = (
        f"{len(found.examples)} examples ({sum(one.failed for one in found.examples)} failed,"
        f" {sum(bool(one.flagged) for one in found.examples)} flagged), {len(found.suspects)} labels to check,"
        f" {len(found.slices)} slices, {len(found.pins)} pins."
    )
    lines = [counts]
    if exported.shown is not None:
        left = len(found.examples) - exported.shown
        lines.append(
            f"{exported.shown} examples have an image"
            + (
                f", {exported.thumbnails} of them as thumbnails (--images FOLDER names their files)"
                if exported.thumbnails
                else ""
            )
            + (f"; {left} without an image are left out." if left else ".")
        )
    pictures = [path for path in exported.files if path.suffix == ".png"]
    others = [path for path in exported.files if path.suffix != ".png"]
    lines += ["", *(f"Written: {path}" for path in others[:_MOST_FILES])]
    if pictures:
        lines.append(f"Written: {len(pictures)} thumbnails in {pictures[0].parent}")
    if to in _NEXT:
        lines.append(f"Open with: {_NEXT[to].format(folder=folder)}")
    return lines
