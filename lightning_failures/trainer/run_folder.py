"""The folder for the files of a run, the same on every rank and after a resume."""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
import weakref
from pathlib import Path

from lightning.pytorch import Trainer

from lightning_failures.trainer.ranks import Communicator

_TEMPORARY: set[Path] = set()


def failures_folder(trainer: Trainer, ranks: Communicator, *, run_id: str | None = None) -> tuple[Path, str]:
    """Return the folder for reports and the id of the run, which a resumed run passes again. Collective.

    A logger with a versioned folder (TensorBoard, CSV) gives ``<log_dir>/failures``. Without one, successive runs would
    share a folder, so each gets ``<log_dir>/failures/<logger name>/<run id>``; the id is the logger's own version if it
    has one. ``fast_dev_run`` writes to a temporary folder, which :func:`discard_temporary` removes, or else the end of
    the Trainer or of the process.
    """
    log_dir = trainer.log_dir  # collective: rank 0 decides
    logger = trainer.logger
    version = getattr(logger, "version", None)
    run_id = ranks.broadcast(run_id or (str(version) if version is not None else uuid.uuid4().hex[:8]))
    assert run_id is not None
    if getattr(trainer, "fast_dev_run", False):
        temporary = ranks.broadcast(ranks.run_all(lambda: _temporary_folder(trainer) if ranks.is_first else None))
        assert temporary is not None
        return temporary, run_id
    folder = Path(log_dir or trainer.default_root_dir) / "failures"
    if logger is not None and getattr(logger, "log_dir", None):
        return folder, run_id
    name = getattr(logger, "name", None) or ("no_logger" if logger is None else type(logger).__name__)
    return folder / safe_name(str(name)) / safe_name(run_id), run_id


def discard_temporary(folder: Path | None) -> None:
    """Remove a folder that this process made for ``fast_dev_run``; keep any other folder, and accept None."""
    if folder in _TEMPORARY:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder(trainer: Trainer) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="failures-"))
    _TEMPORARY.add(folder)
    weakref.finalize(trainer, shutil.rmtree, folder, ignore_errors=True)
    return folder


def safe_name(text: str, *, limit: int = 80) -> str:
    """Return a text as one path component of at most ``limit`` characters and 200 bytes.

    >>> safe_name("../a b/c"), safe_name("..")
    ('a_b_c', '_')
    """
    component = re.sub(r"[^\w.=-]+", "_", text).strip("._")[:limit]
    return component.encode("utf-8", "replace")[:200].decode("utf-8", "ignore") or "_"
