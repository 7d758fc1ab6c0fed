"""Starts a script of this folder in real processes, under a watchdog: none outlives its time, or a failed test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """One started process: its exit status, what it said, and after how many seconds it was over."""

    status: int
    said: str
    seconds: float


def launch(
    script: str, folder: Path, *arguments: object, environments: Sequence[Mapping[str, str]] = ({},), timeout: float
) -> list[Ended]:
    """Run ``tests/processes/<script>.py folder *arguments``, once for each environment at the same time, to the end.

    Lightning starts the further processes of a node by itself. All of them are killed when time is up, which fails
    the test with the last words of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"tests.processes.{script}", str(folder), *map(str, arguments)]
    common = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    common |= {"LIGHTNING_FAILURES_CACHE": str(folder / "cache")}
    logs = [folder / f"said_{number}.txt" for number in range(len(environments))]
    started: list[subprocess.Popen[bytes]] = []
    begin = time.monotonic()
    try:
        for log, environment in zip(logs, environments, strict=True):
            with log.open("wb") as file:
                started.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=os.environ | common | dict(environment),
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        seconds: dict[int, float] = {}
        while len(seconds) < len(started):
            for number, process in enumerate(started):
                if number not in seconds and process.poll() is not None:
                    seconds[number] = time.monotonic() - begin
            if time.monotonic() - begin > timeout:
                told = "\n---\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
                raise AssertionError(f"{script} {arguments} is not over after {timeout} s:\n{told}")
            time.sleep(0.05)
    finally:
        for process in started:
            with suppress(ProcessLookupError):  # its children are in its group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return [
        Ended(process.returncode, log.read_text(errors="replace"), seconds[number])
        for number, (process, log) in enumerate(zip(started, logs, strict=True))
    ]


def free_port() -> int:
    """A port that nobody listens on."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
