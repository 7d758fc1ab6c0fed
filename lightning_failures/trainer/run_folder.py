"""The folder for the files of a run, the same on every rank and after a resume, and of one run at a time.

A run claims its folder until it ends. A run that finds the folder claimed, as do two runs resumed from one checkpoint,
makes a folder of its own beside it, with a copy of the files that it continues from.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable
from itertools import count
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_failures.core.atomic import copy_atomically
from lightning_failures.core.locks import LockingUnsupportedError, claim, release
from lightning_failures.report.feature_names import FEATURES_FILE
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.schedule import RunState

_TEMPORARY: set[Path] = set()
INTERVENTIONS = "interventions"
"""Name of the folder with the files of interventions, in that of a run."""

_ANALYSIS = re.compile(r"epoch=\d+-step=(\d+)")


def claim_run_folder(trainer: Trainer, ranks: Communicator, state: RunState) -> Path:
    """Return the folder for reports, claimed for this Trainer until :func:`leave_folder`. Collective.

    Args:
        trainer: The Trainer.
        ranks: The processes.
        state: Names the folder of a resumed run; gets the names of the one that is returned.
    """
    usual, run_id = failures_folder(trainer, ranks, run_id=state.run_id)
    if getattr(trainer, "fast_dev_run", False):
        state.run_id = run_id
        return usual
    is_named_by_logger = usual.name == "failures"
    if is_named_by_logger and state.own_folder is not None and (usual.parent / state.own_folder).is_dir():
        usual = usual.with_name(state.own_folder)

    def choose() -> Path:
        folder = _claim_first_free(usual, trainer)
        if folder != usual:
            if state.analyses:
                _copy_analyses(usual, folder, trainer.global_step)
            rank_zero_warn(f"Another run is writing to {usual}. This run writes to {folder}.")
        return folder

    chosen = ranks.broadcast(ranks.run_all(lambda: choose() if ranks.is_first else None))
    assert chosen is not None
    if is_named_by_logger:
        state.run_id, state.own_folder = run_id, None if chosen.name == "failures" else chosen.name
    else:
        state.run_id = run_id if chosen == usual else chosen.name
    return chosen


def claim_former_folder(
    former: Path, folder: Path, trainer: Trainer, ranks: Communicator, *, copy: Callable[[Path, Path], object]
) -> Path:
    """Return the folder in which a resumed run keeps the files of its interventions. Collective.

    Args:
        former: The folder before the run was resumed.
        folder: The folder of the run, claimed by this Trainer.
        trainer: The Trainer.
        ranks: The processes.
        copy: Copies the files of interventions from one folder to another.

    Returns:
        ``former``, claimed for this Trainer. If another run holds it: ``folder``, with a copy of the files, or a folder
        beside it if that has files of interventions already.
    """
    if former == folder:
        return folder

    def choose() -> Path:
        if not former.is_dir():
            return folder
        if _claimed(former, trainer):
            return former
        is_used = (folder / INTERVENTIONS).exists()
        own = _claim_first_free(folder.with_name(f"{folder.name}_{INTERVENTIONS}"), trainer) if is_used else folder
        copy(former, own)
        rank_zero_warn(
            f"Another run is writing to {former}, where this run kept the files of its interventions. They are copied"
            f" to {own}, and this run writes there."
        )
        return own

    chosen = ranks.broadcast(ranks.run_all(lambda: choose() if ranks.is_first else None))
    assert chosen is not None
    return chosen


def leave_folder(trainer: Trainer, folder: Path | None) -> None:
    """Release the folders that a Trainer has claimed, and remove the temporary one of ``fast_dev_run``."""
    release(trainer)
    discard_temporary(folder)


def _claim_first_free(folder: Path, trainer: Trainer) -> Path:
    """Claim a folder, or a new one beside it with the first number that is free."""
    if _claimed(folder, trainer):
        return folder
    for number in count(2):
        place = folder.with_name(f"{folder.name}_{number}")
        if not place.exists() and _claimed(place, trainer):
            return place
    raise AssertionError  # never reached


def _claimed(folder: Path, trainer: Trainer) -> bool:
    """Return whether a Trainer may write to a folder; if it cannot be locked, warn and return True."""
    try:
        return claim(folder, trainer)
    except LockingUnsupportedError as error:
        rank_zero_warn(
            f"{folder} cannot be locked ({error.strerror or error}), so another run that writes there would go"
            " unnoticed. Give each run a log folder of its own."
        )
        return True
    except OSError:  # nothing can be written there, which the first report says
        return True


def _copy_analyses(source: Path, target: Path, step: int) -> None:
    """Copy the analyses of a run up to a step, with the state of the diary after each, and the names of features."""
    for place in (source, *source.glob("dataloader_*")):
        for one in place.glob("epoch=*"):
            name = _ANALYSIS.fullmatch(one.name)
            if name is not None and int(name[1]) <= step:
                for file in one.rglob("*"):
                    if file.is_file() and not file.name.startswith("."):
                        _copy(file, target / file.relative_to(source))
    _copy(source / FEATURES_FILE, target / FEATURES_FILE)


def _copy(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
        copy_atomically(source, target)


def failures_folder(trainer: Trainer, ranks: Communicator, *, run_id: str | None = None) -> tuple[Path, str]:
    """Return the folder for reports and the id of the run, which a resumed run passes again. Collective.

    A logger with a versioned folder (TensorBoard, CSV) gives ``<log_dir>/failures``. Without one, successive runs would
    share a folder, so each gets ``<log_dir>/failures/<logger name>/<run id>``; the id is the logger's own version if it
    has one. If ``log_dir`` is the URL of another file system, its text names a folder in the working directory, with a
    warning. ``fast_dev_run`` writes to a temporary folder, which :func:`discard_temporary` removes, or else the end of
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
    folder = _on_this_machine(str(log_dir or trainer.default_root_dir)) / "failures"
    if logger is not None and getattr(logger, "log_dir", None):
        return folder, run_id
    name = getattr(logger, "name", None) or ("no_logger" if logger is None else type(logger).__name__)
    return folder / safe_name(str(name)) / safe_name(run_id), run_id


def _on_this_machine(folder: str) -> Path:
    """Return the path of a log folder; for the URL of another file system one in the working directory."""
    scheme, separator, path = folder.partition("://")
    if not separator:
        return Path(folder)
    if scheme in ("file", "local"):
        return Path(path)
    own = Path.cwd() / safe_name(folder)
    rank_zero_warn(f"The log folder {folder} is not on this machine. FailureModes writes its files to {own}.")
    return own


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
