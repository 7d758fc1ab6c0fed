"""Folders of the user: where caches lie, and a home for one who has none, as in containers under an unknown user id."""

from __future__ import annotations

import os
import stat
import tempfile
from functools import cache
from pathlib import Path

import platformdirs

from lightning_failures.errors import ConfigurationError

CACHE_BYTES = 4 * 2**30
"""Size limit of the embedding cache, unless the user sets another one."""


def provide_home() -> None:
    """Set ``HOME`` to a private temporary folder if the user has no home; call it before files are kept there.

    Libraries (Hugging Face) would make a folder named ``~`` in the working directory.
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path.expanduser raises
        os.environ["HOME"] = str(private_folder(Path(tempfile.gettempdir())))


@cache
def private_folder(parent: Path) -> Path:
    """Return a folder in a shared one that only this user can read and write, the same in each process if possible."""
    folder = parent / f"lightning_failures-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        is_private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    except OSError:  # a file, or a broken link, of this name
        is_private = False
    return folder if is_private else Path(tempfile.mkdtemp(prefix="lightning_failures-", dir=parent))


def default_cache_folder() -> Path:
    """Return ``$LIGHTNING_FAILURES_CACHE``, else the user's cache folder: ``~/.cache/lightning_failures`` on Linux."""
    provide_home()
    if chosen := os.environ.get("LIGHTNING_FAILURES_CACHE"):
        return Path(chosen).expanduser()
    return Path(platformdirs.user_cache_dir("lightning_failures", appauthor=False, opinion=False)).expanduser()


def default_cache_bytes() -> int:
    """Return ``$LIGHTNING_FAILURES_CACHE_SIZE``, such as ``20 GiB``, in bytes; else 4 GiB.

    Raises:
        ConfigurationError: The variable holds no size.
    """
    from lightning_failures.core.budget import read_bytes  # loads NumPy, which the shell does not need at first

    chosen = os.environ.get("LIGHTNING_FAILURES_CACHE_SIZE")
    if not chosen:
        return CACHE_BYTES
    try:
        return read_bytes(chosen)
    except ValueError:
        raise ConfigurationError(
            f"LIGHTNING_FAILURES_CACHE_SIZE={chosen} is no size. Set it to bytes, or for instance to '20 GiB'."
        ) from None
