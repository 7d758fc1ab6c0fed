"""Run a script of this folder in real processes, under a watchdog: no process outlives its time or a failed test.

:func:`launch` starts Python for each process, and Lightning starts the other ranks of a node. :func:`fork` starts all
ranks itself, as torchrun and SLURM do, from a server that has imported everything: it saves seconds for each process.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMON = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SLACK = 120.0  # seconds that the server may take to start and to answer, on a busy machine


@dataclass(frozen=True)
class Ended:
    """An ended process: its exit status, what it wrote to standard output and error, and the seconds it ran."""

    status: int
    said: str
    seconds: float


def launch(
    script: str, folder: Path, *arguments: object, environments: Sequence[Mapping[str, str]] = ({},), timeout: float
) -> list[Ended]:
    """Run ``python -m tests.processes.<script> folder *arguments`` once for each environment, at the same time.

    After ``timeout`` seconds all processes, and those that Lightning has started, are killed, and the test fails with
    the last output of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"tests.processes.{script}", str(folder), *map(str, arguments)]
    common = COMMON | {"LIGHTNING_FAILURES_CACHE": str(folder / "cache")}
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
                raise AssertionError(_late(script, timeout, logs))
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


def fork(
    script: str, folder: Path, *arguments: object, environments: Sequence[Mapping[str, str]] = ({},), timeout: float
) -> list[Ended]:
    """Do what :func:`launch` does in forks of the server; Lightning must not have to start other ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {"LIGHTNING_FAILURES_CACHE": str(folder / "cache")}
    jobs = [
        Job(script, (str(folder), *map(str, arguments)), common | dict(environment), str(folder / f"said_{number}.txt"))
        for number, environment in enumerate(environments)
    ]
    return run_forked(jobs, timeout=timeout)


@dataclass(frozen=True)
class Job:
    """A script of this folder to run in a fork: arguments, additional environment, and the file for its output."""

    script: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: str


def run_forked(jobs: Sequence[Job], *, timeout: float) -> list[Ended]:
    """Run jobs at the same time in forks of the server; fail if one takes longer than ``timeout`` seconds."""
    answers = server().answer([asdict(job) for job in jobs], timeout)
    logs = [Path(job.log) for job in jobs]
    ended = []
    for (status, seconds), log in zip(answers, logs, strict=True):
        if status is None:
            raise AssertionError(_late(jobs[0].script, timeout, logs))
        ended.append(Ended(status, log.read_text(errors="replace"), seconds))
    return ended


def ranks(world: int) -> list[dict[str, str]]:
    """Return the environment of each rank of a node, as torchrun would set it."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    return [common | {"LOCAL_RANK": str(rank)} for rank in range(world)]


def free_port() -> int:
    """Return a port that no process listens on."""
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """The process of :mod:`tests.processes.fork_server`, started at once and stopped by :meth:`close`."""

    def __init__(self) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open for as long as the server runs
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.processes.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | COMMON,
            cwd=ROOT,
            start_new_session=True,
        )

    def answer(self, jobs: list[dict[str, object]], timeout: float) -> list[tuple[int | None, float]]:
        """Return the exit status (None: killed after the time-out) and the seconds of each job."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"jobs": jobs, "timeout": timeout}) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], timeout + SLACK)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.errors.seek(0)
            raise AssertionError(f"the fork server does not answer:\n{self.errors.read()[-3000:]}")
        return [(status, seconds) for status, seconds in json.loads(line)]

    def close(self) -> None:
        """Kill the server."""
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            if file is not None:
                file.close()


@functools.cache
def server() -> Server:
    """Return the server of this test session, started at the first call and killed at exit."""
    started = Server()
    atexit.register(started.close)
    return started


def _late(script: str, timeout: float, logs: Sequence[Path]) -> str:
    said = "\n---\n".join(log.read_text(errors="replace")[-3000:] for log in logs)
    return f"{script} is not over after {timeout} s:\n{said}"
