"""Write the HTML report of a run."""

from __future__ import annotations

from pathlib import Path

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import to_bytes
from lightning_failures.report.run_folder import HTML_FILE, Run, open_run


def write_html(run: Run | Path, output: Path | None = None) -> Path:
    """Write the HTML page of a run and return its path.

    Args:
        run: The run, or a path that :func:`~lightning_failures.report.run_folder.open_run` takes.
        output: The file to write; by default ``report.html`` in the folder of the run.

    Raises:
        ConfigurationError: There is no run.
        OSError: The page cannot be written.
    """
    from lightning_failures.report.html.render import render  # loads the template engine

    opened = run if isinstance(run, Run) else open_run(run)
    path = opened.folder / HTML_FILE if output is None else output
    write_atomically(path, to_bytes(render(opened)))
    return path
