"""One run at a time in a folder: in one process, in two, after a kill, and where nothing can be locked."""

from __future__ import annotations

import errno
import fcntl
import gc
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from lightning_failures.core import locks
from lightning_failures.core.locks import LOCK_FILE, LockingUnsupportedError, claim, locked, release
from tests.processes.launch import COMMON, ROOT

HOLDS = """
import sys, time
from pathlib import Path
from lightning_failures.core.locks import claim
class Owner: ...
owner = Owner()
print(claim(Path(sys.argv[1]), owner), flush=True)
time.sleep(60)
"""


class Owner:
    """Stands for a Trainer."""


@pytest.fixture
def other(tmp_path):
    """A process that holds ``tmp_path / "run"``."""
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | COMMON, cwd=ROOT) as process:
        assert process.stdout.readline() == b"True\n"
        yield process
        process.kill()


def test_claim__one_owner_at_a_time(tmp_path):
    one, two, folder = Owner(), Owner(), tmp_path / "deep" / "run"
    assert claim(folder, one)
    assert claim(folder, one)
    assert not claim(folder, two)
    assert claim(tmp_path / "another", two)
    release(one)
    assert not folder.exists()  # nothing was written
    assert claim(folder, two)
    (folder / "file").touch()
    release(two)
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_release__leaves_no_empty_folder_that_the_claim_created(tmp_path):
    one, two, before = Owner(), Owner(), tmp_path / "before"
    before.mkdir()
    assert claim(before / "failures" / "run", one)
    assert claim(before / "failures" / "run_2", two)
    release(one)
    assert [path.name for path in (before / "failures").iterdir()] == ["run_2"]
    release(two)
    assert list((before / "failures").iterdir()) == []  # the first claim created it, and was released before
    assert claim(before / "other" / "run", one)
    release(one)
    assert [path.name for path in before.iterdir()] == ["failures"]


def test_claim__ends_with_its_owner_and_not_with_a_former_one(tmp_path):
    one, two, three = Owner(), Owner(), Owner()
    assert claim(tmp_path, one)
    release(one)
    assert claim(tmp_path, two)
    del one
    gc.collect()
    assert not claim(tmp_path, three)
    del two
    gc.collect()
    assert claim(tmp_path, three)
    release(three)


def test_claim__of_another_process_until_it_is_killed(tmp_path, other):
    one = Owner()
    assert not claim(tmp_path / "run", one)
    assert not claim(tmp_path / "run", one)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run" / LOCK_FILE).exists()  # left by the killed process, unlocked
    assert claim(tmp_path / "run", one)
    release(one)


def _fork(folder, answers) -> None:
    """Answer whether a forked worker can claim a folder of its parent, whose lock it must not drop."""
    answers.put(claim(folder, Owner()))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_claim__forked_workers_neither_hold_nor_drop_it(tmp_path):
    one, context = Owner(), multiprocessing.get_context("fork")
    assert claim(tmp_path, one)
    answers = context.Queue()
    worker = context.Process(target=_fork, args=(tmp_path, answers))
    worker.start()
    assert answers.get(timeout=30) is False
    worker.join()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, env=os.environ | COMMON, cwd=ROOT
    ) as process:
        assert process.stdout.readline() == b"False\n"
        process.kill()
    release(one)


def test_locked__waits_its_turn_and_leaves_nothing(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "lock"):
            assert (tmp_path / "lock").exists()
        assert not list(tmp_path.iterdir())


def test_claim__where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        claim(tmp_path / "file" / "run", Owner())
    with pytest.raises(OSError, match="name too long"):
        claim(tmp_path / ("x" * 300), Owner())


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_claim__file_systems_without_locks(tmp_path, monkeypatch, code):
    """Network file systems that are mounted without locks answer so; none can be mounted here."""

    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(LockingUnsupportedError) as caught:
        claim(tmp_path, Owner())
    assert caught.value.errno == code


def test_claim__systems_without_posix_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(LockingUnsupportedError):
        claim(tmp_path, Owner())
