"""Command ``pin``: keep a slice of a run as a regression test, from the files of the run alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_failures.cli.options import pin_options
from lightning_failures.core.text import printable
from lightning_failures.errors import ConfigurationError
from lightning_failures.regression.pin import PIN_SUFFIX
from lightning_failures.report.pins import pin_slice
from lightning_failures.report.run_folder import open_run
from lightning_failures.writers.files import file_name


def pin(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures pin``."""
    options = pin_options(arguments)
    pinned = pin_slice(open_run(options.run), options.class_name, options.mode, accept=options.accept)
    path: Path = options.output
    if path.suffix != PIN_SUFFIX:
        path = path / f"{file_name(pinned.name)}{PIN_SUFFIX}"
    replaces = path.exists()
    try:
        pinned.save(path)
    except OSError as error:
        raise ConfigurationError(f"Could not write {path} ({error}). Give another place: --output FOLDER.") from error
    print(f"{printable(pinned.words)}\n\nPin{' (replaced)' if replaces else ''}: {printable(str(path))}")
