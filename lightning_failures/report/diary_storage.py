"""The diary on disk: one state next to each analysis, from which a resumed run continues."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_failures.analysis.diary import Diary, Mode, advance
from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.serialization import from_jsonable, read_json
from lightning_failures.data.joining import ExampleKeys
from lightning_failures.data.report import ModeReport, analysis_name
from lightning_failures.directions.matching import ModeSnapshot
from lightning_failures.errors import DataError

MODES_FILE = "modes.safetensors"
"""The state of the diary after an analysis, in its folder."""

MAX_STATES = 20
"""Most states that are kept: the first one and the latest."""

_TENSORS = ("directions", "ids", "flagged", "failed", "digests")
_FORMAT = "lightning-failures diary 1"
_ANALYSIS = re.compile(r"epoch=(\d+)-step=(\d+)")


def keep_diary(
    result: AnalysisResult, folder: Path, *, warn: Callable[[str], Any] = warnings.warn
) -> tuple[ModeReport, ...]:
    """Enter an analysis into the diary of its run.

    The diary continues from the last state of the same run at an earlier step (or epoch, if steps stand still, as with
    manual optimisation); of several analyses in one epoch and step the last one counts. States of later steps of the
    same run are removed: they are left over from before the run was resumed from an earlier checkpoint. States of other
    runs, which used the folder before, are left alone.

    Args:
        result: One analysis. Only analyses made in ``fit`` are entered, not single validations and tests.
        folder: The folder of the run, ``<log_dir>/failures``.
        warn: Called with a message if a state is damaged or cannot be written. The diary then continues from the state
            before, or starts from nothing.

    Returns:
        The record of each failure mode; nothing outside of ``fit``.
    """
    report = result.report
    if report.stage != "fit":
        return ()
    step = report.global_step or 0
    here = folder / analysis_name(report, step) / MODES_FILE
    states, now = _states(folder, report.run_id), (step, report.epoch or 0)
    earlier = [path for at, path in states if at < now]
    diary, modes = advance(_last_readable(earlier, warn), result)
    try:
        save_diary(diary, here)
    except OSError as error:
        warn(f"The failure diary could not be written: {type(error).__name__}: {error}")
    later = [path for at, path in states if at >= now and path != here]
    for path in earlier[1 : max(1, len(earlier) + 1 - MAX_STATES)] + later:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return modes


def _states(folder: Path, run_id: str | None) -> list[tuple[tuple[int, int], Path]]:
    """Return (step, epoch) and the file of every state of a run, in ascending order; damaged files are included."""
    found = ((_ANALYSIS.fullmatch(path.parent.name), path) for path in folder.glob(f"epoch=*/{MODES_FILE}"))
    own = ((name, path) for name, path in found if name and _is_of_run(path, run_id))
    return sorted(((int(name[2]), int(name[1])), path) for name, path in own)


def _is_of_run(path: Path, run_id: str | None) -> bool:
    """Return whether a state is of a run; also of one that cannot be read, which is reported when it is its turn."""
    try:
        with safe_open(str(path), framework="pt") as file:
            stored = read_json((file.metadata() or {})["diary"])
        return bool(stored.get("run_id") == run_id)
    except Exception:  # damaged files raise errors of many types
        return True


def _last_readable(paths: list[Path], warn: Callable[[str], Any]) -> Diary:
    for path in reversed(paths):
        try:
            return load_diary(path)
        except (DataError, OSError) as error:
            warn(f"The failure diary continues from an earlier state: {error}")
    return Diary()


@dataclass(frozen=True)
class _StoredMode:
    """A failure mode in JSON: ``row`` is its streak, ``look`` and ``base`` index its snapshot and reference."""

    name: str
    class_index: int
    class_name: str
    since: int | None
    last: int
    seen: int
    row: int
    missed: int
    born: bool
    was_cured: bool
    cured: bool
    caption: str | None
    look: int
    base: int
    threshold: float | None = None


_RENAMED = ("row", "look", "base")  # keys of the file that differ from the attributes of a mode
_COPIED = [field.name for field in dataclasses.fields(_StoredMode) if field.name not in _RENAMED]


@dataclass(frozen=True)
class _StoredDiary:
    """A diary in JSON; ``look_ids`` holds the index of the set of ids of each snapshot.

    ``has_digests`` holds, for each set of ids, whether the digests of its examples are stored too.
    """

    modes: tuple[_StoredMode, ...]
    analyses: int
    numbers: dict[str, int]
    encoder: str | None
    look_ids: tuple[int, ...]
    id_counts: tuple[int, ...]
    run_id: str | None = None
    has_digests: tuple[bool, ...] = ()


def save_diary(diary: Diary, path: Path) -> None:
    """Write one safetensors file, atomically. Ids that several snapshots share are written once."""
    # snapshots, and arrays of ids, that several modes share are objects that are stored once
    snapshots = list({id(one): one for mode in diary.modes for one in (mode.snapshot, mode.reference)}.values())
    snapshot_index = {id(snapshot): index for index, snapshot in enumerate(snapshots)}
    distinct = {(id(one.ids), id(one.digests)): one.keys for one in snapshots}
    ids_index = {key: index for index, key in enumerate(distinct)}

    def stored_mode(mode: Mode) -> _StoredMode:
        copied = {name: getattr(mode, name) for name in _COPIED}
        look, base = snapshot_index[id(mode.snapshot)], snapshot_index[id(mode.reference)]
        return _StoredMode(**copied, row=mode.streak, look=look, base=base)

    stored = _StoredDiary(
        modes=tuple(map(stored_mode, diary.modes)),
        analyses=diary.analyses,
        numbers=diary.numbers,
        encoder=diary.encoder,
        look_ids=tuple(ids_index[id(one.ids), id(one.digests)] for one in snapshots),
        id_counts=tuple(len(keys) for keys in distinct.values()),
        run_id=diary.run_id,
        has_digests=tuple(keys.digests is not None for keys in distinct.values()),
    )
    no_ids = torch.empty(0, dtype=torch.int64)
    tensors = {
        "directions": _joined([mode.direction[None] for mode in diary.modes], torch.empty(0, 0, dtype=torch.float16)),
        "ids": _joined([keys.ids for keys in distinct.values()], no_ids),
        "flagged": _joined([snapshot.flagged for snapshot in snapshots], torch.empty(0, dtype=torch.bool)),
        "failed": _joined([snapshot.failed for snapshot in snapshots], torch.empty(0, dtype=torch.bool)),
        "digests": _joined([keys.digests for keys in distinct.values() if keys.digests is not None], no_ids),
    }
    text = json.dumps(dataclasses.asdict(stored))
    metadata = {"format": _FORMAT, "diary": text, "checksum": _checksum(text, tensors.values())}
    write_atomically(path, save(tensors, metadata))


def _checksum(text: str, tensors: Iterable[Tensor]) -> str:
    hasher = xxhash.xxh3_128(text.encode())
    for tensor in tensors:
        hasher.update(tensor.numpy().tobytes())
    return hasher.hexdigest()


def _joined(arrays: list[Any], empty: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)) if arrays else empty


def load_diary(path: Path) -> Diary:
    """Read what :func:`save_diary` wrote.

    Raises:
        DataError: The file is not a diary, or damaged.
        OSError: The file cannot be read.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"format {metadata.get('format')!r}")
            present = set(file.keys())
            names = [name for name in _TENSORS if name in present or name != "digests"]  # former files have none
            tensors = [file.get_tensor(name) for name in names]
        if metadata["checksum"] != _checksum(metadata["diary"], tensors):
            raise ValueError("wrong checksum")
        return _rebuilt(from_jsonable(_StoredDiary, read_json(metadata["diary"])), *tensors)
    except OSError:
        raise
    except Exception as error:  # damaged files raise errors of many types
        raise DataError(f"{path} is not a valid failure diary ({str(error)[:200]})") from error


def _rebuilt(
    stored: _StoredDiary,
    directions: Tensor,
    ids: Tensor,
    flagged: Tensor,
    failed: Tensor,
    digests: Tensor | None = None,
) -> Diary:
    # cut the joined arrays into those of each snapshot
    known = stored.has_digests or (False,) * len(stored.id_counts)
    counts = [count if has else 0 for count, has in zip(stored.id_counts, known, strict=True)]
    parts = _split(ids.numpy() if digests is None else digests.numpy(), counts)
    distinct = [
        ExampleKeys(own, part if has else None)
        for own, part, has in zip(_split(ids.numpy(), stored.id_counts), parts, known, strict=True)
    ]
    keys = [distinct[index] for index in stored.look_ids]
    sizes = [len(one) for one in keys]
    columns = (keys, _split(flagged.numpy(), sizes), _split(failed.numpy(), sizes))
    snapshots = [ModeSnapshot(one.ids, flags, fails, one.digests) for one, flags, fails in zip(*columns, strict=True)]

    def mode_of(entry: _StoredMode, direction: Tensor) -> Mode:
        copied = {name: getattr(entry, name) for name in _COPIED}
        return Mode(
            **copied,
            direction=direction.numpy(),
            snapshot=snapshots[entry.look],
            reference=snapshots[entry.base],
            streak=entry.row,
        )

    modes = tuple(mode_of(entry, direction) for entry, direction in zip(stored.modes, directions, strict=True))
    return Diary(modes, stored.analyses, stored.numbers, stored.encoder, stored.run_id)


def _split(array: NDArray[Any], counts: Sequence[int]) -> list[NDArray[Any]]:
    """Return consecutive parts of an array with the given lengths."""
    return [array[start:stop] for start, stop in pairwise(accumulate(counts, initial=0))]
