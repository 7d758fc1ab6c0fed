"""Run the scripts of this folder in forks of one process that has already imported what they need.

Importing torch, Lightning and the package takes longer than most trainings of the tests.
:mod:`tests.processes.launch` starts this server once a test session and writes a list of jobs to it for every line of
its input, as JSON. The server forks a process for each job of the list, runs them at the same time, and answers with
the exit status and the seconds of each. The server has one thread, so that a fork lacks nothing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
import warnings
from typing import Any

import torch

SCRIPTS = ("ddp_faults", "ddp_nodes", "disk_fit", "embed_pool")  # these import all that the others import


def run(job: dict[str, Any]) -> None:
    """Run a script as ``python -m`` would, in the folder and with the environment and arguments of the job."""
    os.environ.update(job["environment"])
    name = f"tests.processes.{job['script']}"
    sys.modules.pop(name, None)  # the script becomes __main__
    sys.argv[1:] = job["arguments"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.resetwarnings()
    warnings.simplefilter("default")
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def start(job: dict[str, Any]) -> int:
    """Fork a process that runs a job in a process group of its own; return its id."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 1
    try:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        run(job)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(children: list[int], timeout: float) -> list[tuple[int | None, float]]:
    """Return exit status (minus the signal that ended it; None after a time-out) and seconds of each process.

    At the time-out all are killed. Processes that a child has started and left behind are killed with it.
    """
    begin = time.monotonic()
    ended: dict[int, tuple[int | None, float]] = {}
    while len(ended) < len(children):
        late = time.monotonic() - begin > timeout
        for child in children:
            if child in ended:
                continue
            if late:
                kill_group(child)
            done, status = os.waitpid(child, 0 if late else os.WNOHANG)
            if done:
                ended[child] = (None if late else os.waitstatus_to_exitcode(status), time.monotonic() - begin)
                kill_group(child)
        time.sleep(0.005)
    return [ended[child] for child in children]


def kill_group(leader: int) -> None:
    """Kill all processes of a group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def warm_up() -> None:
    """Train once, and so import what a training imports as it goes, and load the compiled kernels."""
    for script in SCRIPTS:
        importlib.import_module(f"tests.processes.{script}")
    from tests.processes.interrupted_fit import train

    with tempfile.TemporaryDirectory() as folder:
        train({"folder": folder, "name": "first", "interventions": "both", "workers": 0, "epochs": 2})


def main() -> None:
    """Answer every list of jobs until the input ends."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        warm_up()
    gc.collect()
    gc.freeze()  # a collection in a fork looks at what the fork has made alone
    for line in sys.stdin:
        order = json.loads(line)
        children = [start(job) for job in order["jobs"]]
        print(json.dumps(wait(children, order["timeout"])), flush=True)


if __name__ == "__main__":
    main()
