"""Locks between processes: one writer at a time in a file, one run at a time in a folder.

Locks are POSIX record locks: the system drops them when a process ends, also when it is killed, and workers that a
process forks do not inherit them. The file of a lock is removed with it; that of a killed process stays, unlocked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".in-use"
"""Name of the file in a folder that is locked while a run or a command writes there."""


class LockingUnsupportedError(OSError):
    """A file cannot be locked: the file system, or the operating system, does not support it."""


@dataclass(frozen=True, eq=False)
class _Claim:
    """A folder that this process has locked; processes forked from it inherit the record but not the lock."""

    descriptor: int
    process: int
    owner: weakref.ref[Any]
    created: tuple[Path, ...]
    """Folders above it that the claim created, innermost first."""


_CLAIMS: dict[Path, _Claim] = {}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds a lock, and hold it for the block; threads of one process share it.

    Raises:
        LockingUnsupportedError: The file cannot be locked.
        OSError: The folder cannot be written.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "lock"
    >>> with locked(path):
    ...     path.exists()
    True
    >>> path.exists()
    False
    """
    descriptor = _take(path, wait=True)
    assert descriptor is not None  # it has waited
    try:
        yield
    finally:
        _drop(path, descriptor)


def claim(folder: Path, owner: object) -> bool:
    """Claim a folder, which is created, for an object of this process; return False if another one holds it.

    The claim ends with :func:`release`, with the object, or with the process.

    Raises:
        LockingUnsupportedError: The folder cannot be locked, so another process that writes there goes unnoticed.
        OSError: The folder cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> class Owner: ...
    >>> one, other = Owner(), Owner()
    >>> claim(folder, one), claim(folder, one), claim(folder, other)
    (True, True, False)
    >>> release(one)
    >>> claim(folder, other)
    True
    """
    folder = folder.resolve()
    held = _CLAIMS.get(folder)
    # asking the system about a lock of one's own would drop it
    if held is not None and held.process == os.getpid() and held.owner() is not None:
        return held.owner() is owner
    created = tuple(parent for parent in folder.parents if not parent.exists())
    descriptor = _take(folder / LOCK_FILE, wait=False)
    if descriptor is None:
        return False
    _CLAIMS[folder] = new = _Claim(descriptor, os.getpid(), weakref.ref(owner), created)
    weakref.finalize(owner, _release, folder, new)
    return True


def release(owner: object) -> None:
    """Release all folders that an object has claimed; those without any other file are removed.

    Empty folders above them are removed too if the claim created them.
    """
    for folder, held in list(_CLAIMS.items()):
        if held.owner() is owner:
            _release(folder, held)


def _release(folder: Path, held: _Claim) -> None:
    if _CLAIMS.get(folder) is not held or held.process != os.getpid():
        return  # released before, or claimed by the process that this one was forked from
    del _CLAIMS[folder]
    _drop(folder / LOCK_FILE, held.descriptor)
    with contextlib.suppress(OSError):  # not empty
        for empty in (folder, *held.created):
            empty.rmdir()


def _take(path: Path, *, wait: bool) -> int | None:
    """Lock a file, which is created, with its folder; return its descriptor, or None if another process holds it."""
    if fcntl is None:
        raise LockingUnsupportedError(errno.ENOSYS, "this system has no POSIX locks")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # a former holder has removed the empty folder meanwhile
            continue
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not wait and error.errno in (errno.EACCES, errno.EAGAIN):
                return None
            raise LockingUnsupportedError(error.errno, error.strerror) from error
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its former holder has removed it meanwhile


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _drop(path: Path, descriptor: int) -> None:
    """Remove the file of a lock, while it is still held, and unlock it."""
    with contextlib.suppress(OSError):
        path.unlink()
    os.close(descriptor)
