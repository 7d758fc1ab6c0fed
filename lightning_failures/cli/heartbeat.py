"""Signs of life of a command that has printed nothing for ten seconds: how long it has run, and what it is doing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

EVERY = 10.0
"""Seconds of silence before each sign of life."""

_PACKAGE = __name__.partition(".")[0]
_DOING = {
    "analysis": "analysing failures",
    "captions": "scoring captions",
    "directions": "fitting failure directions",
    "doctor": "checking the configuration",
    "encoders": "embedding images",
    "generators": "generating images",
    "interventions": "deciding on interventions",
    "pools": "reading the pool",
    "report": "building the report",
    "sparse": "fitting sparse layers",
    "steering": "training forks",
    "stats": "computing intervals and p-values",
    "studies": "building the study",
    "trainer": "grading and embedding",
    "trees": "growing failure trees",
    "writers": "writing reports",
}


@contextmanager
def heartbeat(stream: TextIO, *, every: float = EVERY, always: bool = False) -> Iterator[None]:
    """Print a line whenever nothing was printed for some seconds inside of the block.

    Progress bars and prints count as output, so that nothing is added where Lightning shows its own progress.

    Args:
        stream: Where to print, if it is a terminal: logs and pipes stay as they are.
        every: Seconds of silence before a line.
        always: Print even if the stream is no terminal.
    """
    if not always and not stream.isatty():
        yield
        return
    clock = _Clock()
    stop = threading.Event()
    main = threading.get_ident()
    streams = list({id(one): one for one in (sys.stdout, sys.stderr, stream)}.values())
    writes = [(one, one.write) for one in streams]
    for one, write in writes:
        _watch(one, write, clock)
    beat = threading.Thread(target=_beat, args=(stream, writes, clock, stop, main, every), daemon=True)
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        for one, _ in writes:
            vars(one).pop("write", None)


class _Clock:
    """When the command began, and when it last printed."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()


def _watch(stream: Any, write: Callable[[str], int], clock: _Clock) -> None:
    def touched(text: str) -> int:
        clock.last = time.monotonic()
        return write(text)

    stream.write = touched


def _beat(
    stream: TextIO,
    writes: list[tuple[TextIO, Callable[[str], int]]],
    clock: _Clock,
    stop: threading.Event,
    main: int,
    every: float,
) -> None:
    own = next(write for one, write in writes if one is stream)
    while not stop.wait(max(0.05, clock.last + every - time.monotonic())):
        if time.monotonic() - clock.last < every:
            continue
        own(f"{time.monotonic() - clock.began:.0f} s: {doing(sys._current_frames().get(main))} ...\n")
        stream.flush()
        clock.last = time.monotonic()


def doing(frame: FrameType | None) -> str:
    """Return what a thread is doing, by the room of its innermost function of this package.

    >>> doing(None)
    'loading'
    """
    while frame is not None:
        parts = str(frame.f_globals.get("__name__", "")).split(".")
        if len(parts) > 1 and parts[0] == _PACKAGE and parts[1] in _DOING:
            return _DOING[parts[1]]
        frame = frame.f_back
    return "loading"
