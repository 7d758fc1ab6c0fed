"""Lightning's own tests with the callback in every Trainer: does more change than the sight of extra keys and files?

    git clone --depth 1 --branch 2.6.6 https://github.com/Lightning-AI/pytorch-lightning
    python benchmarks/lightnings_own_tests.py pytorch-lightning --output benchmarks/results/lightnings_own_tests.json

``callbacks_factory`` is Lightning's entry point for callbacks that reach every Trainer. The tests of the checkout run
in the installed Lightning, with other callbacks each time:

* plain: none.
* failures: ``FailureModes``, which grades whatever the batches hold (``read_any_batch``).
* plain again, for tests that differ so far: a test that differs from plain here too is unstable and is left out.
* control, for the same tests: one that does nothing but log a constant, keep a state, and write a file.

Each test has an outcome, and a fingerprint of every Trainer in it: weights, random streams, and metrics, without keys
that begin with ``failures/``, after each ``fit``, ``validate``, ``test`` and ``predict``. A test that is like plain
without the callback is unchanged. One that changes its outcome under the control too, in the same way, counts
callbacks, keys or files. Anything else is a difference, and is named; those in ``EXPLAINED`` with the reason.

A test that needs what is not installed is skipped, or fails, in all runs: it says nothing. A test that takes longer
than ``--test-limit`` seconds is stopped and has the outcome "no end"; the others still run. ``--select`` takes folders
or files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from uuid import uuid4

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from lightning_failures import BatchRecord, FailureModes
from lightning_failures.data.digests import image_digests
from lightning_failures.trainer.index_recorder import evaluation_loaders

ROLES = ("plain", "failures", "plain again", "control")
ROLE = "LIGHTNING_FAILURES_ROLE"
RECORDS = "LIGHTNING_FAILURES_RECORDS"
TEST_LIMIT = "LIGHTNING_FAILURES_TEST_LIMIT"
FOLDERS = (
    "callbacks", "checkpointing", "core", "loggers", "loops", "models", "overrides", "plugins", "profilers",
    "strategies", "trainer", "tuner", "utilities",
)  # fmt: skip
PIXELS = 3 * 8 * 8
NO_END = "no end"
EXPLAINED = {
    "test_replace_distributed_sampler[2]": "asks for the exact class of a batch sampler; the one that records"
    " indices is an instance of a subclass",
}
"""Tests that differ by design, each with the reason."""
COUNTED, COLLECTED = ("tests", "unchanged", "skipped or failing"), ("keys and files", "unstable", "explained", "differ")
"""Entries of the results that are numbers, and those that name tests."""


# -- the callbacks of the runs ---------------------------------------------------------------------------------------


class Control(L.Callback):
    """Log a constant, keep a state and write a file, as a callback of any kind may."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log a constant."""
        if not trainer.sanity_checking:
            pl_module.log("failures/accuracy", 0.5, batch_size=1, rank_zero_only=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a file."""
        if trainer.sanity_checking:
            return
        place = Path(trainer.log_dir or trainer.default_root_dir) / "failures"  # log_dir is collective
        if trainer.is_global_zero:
            folder = place / uuid4().hex[:8]  # some tests compare what was there before with what is there now
            folder.mkdir(parents=True)
            (folder / "report.json").write_text("{}")

    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end

    def state_dict(self) -> dict[str, Any]:
        """Keep a state."""
        return {"version": 1}


class Colours:
    """An encoder of the means of patches, which costs nothing."""

    name = fingerprint = "means-of-patches"
    dim = 12

    def encode_images(self, images: Tensor) -> Tensor:
        """Return (B, 12)."""
        return F.adaptive_avg_pool2d(images.float(), 2).flatten(1)


class Everywhere(FailureModes):
    """The callback as it meets batches of every form."""

    def __init__(self) -> None:
        super().__init__(
            encoder=Colours(), captions=None, pictures=False, read_batch=self._read_any_batch, permutations=19
        )
        self._loader: Any = None
        self._seen: dict[int, int] = {}

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Remember which loader the batch comes from, for its ids."""
        self._loader = evaluation_loaders(trainer)[dataloader_idx]
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    on_test_batch_start = on_validation_batch_start

    def _read_any_batch(self, outputs: Any, batch: Any) -> BatchRecord:
        record = read_any_batch(batch)
        indexed = isinstance(self._loader, DataLoader) and not isinstance(self._loader.dataset, IterableDataset)
        if indexed and self._loader.batch_size is not None:
            return record
        ids = []
        for digest in image_digests(record.images).tolist():  # equal images are different examples
            self._seen[digest] = self._seen.get(digest, -1) + 1
            ids.append((digest + self._seen[digest]) % 2**62)
        return BatchRecord(record.logits, record.labels, record.images, torch.tensor(ids))


def read_any_batch(batch: Any) -> BatchRecord:
    """Grade a batch of any form: its first tensor stands for the images, and its values for label and prediction."""
    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.numel()]
    rows = tensors[0].detach() if tensors else torch.zeros(1, 1)
    rows = rows.reshape(len(rows) if rows.ndim else 1, -1).float().nan_to_num()
    repeated = rows.repeat(1, -(-PIXELS // rows.shape[1]))[:, :PIXELS]
    images = repeated.sigmoid().reshape(-1, 3, 8, 8)
    labels, predictions = (rows[:, 0] > 0).long(), (rows.mean(1) > 0).long()
    return BatchRecord(F.one_hot(predictions, 2).float(), labels, images)


def callbacks() -> list[L.Callback]:
    """Return the callbacks of every Trainer in this run; the target of the entry point."""
    return [Everywhere()] if _role == "failures" else [Control()] if _role == "control" else []


# -- a pytest plugin that records outcomes and fingerprints ----------------------------------------------------------

# read once, since some tests empty the environment
_role, _records = os.environ.get(ROLE), os.environ.get(RECORDS)
_seconds = float(os.environ.get(TEST_LIMIT, "inf"))
_fingerprints: list[str] = []
_outcomes: dict[str, dict[str, Any]] = {}


def fingerprint(trainer: L.Trainer) -> str:
    """Hash weights, random streams and metrics."""
    digest = hashlib.sha256()
    module = trainer.lightning_module
    if isinstance(module, nn.Module):
        for name, value in module.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, Tensor) and not value.is_meta:
                digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(torch.get_rng_state().numpy().tobytes())
    digest.update(repr(random.getstate()).encode())
    digest.update(np.random.get_state()[1].tobytes())  # noqa: NPY002
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if not key.startswith("failures/")}
    digest.update(repr(sorted(metrics.items())).encode())
    return digest.hexdigest()[:16]


def _recorded(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def run(trainer: L.Trainer, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(trainer, *args, **kwargs)
        finally:
            try:
                _fingerprints.append(f"{method.__name__} {fingerprint(trainer)}")
            except Exception as error:  # a mock, or a module that cannot be read
                _fingerprints.append(f"{method.__name__} {type(error).__name__}")

    return run


def pytest_configure(config: pytest.Config) -> None:
    """Record what each Trainer leaves behind."""
    for name in ("fit", "validate", "test", "predict"):
        setattr(L.Trainer, name, _recorded(getattr(L.Trainer, name)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Start each test with the same random streams, and stop it at the limit."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    _fingerprints.clear()
    _outcomes[item.nodeid] = {"outcome": NO_END, "prints": [], "text": f"over {_seconds:.0f} s"}
    write_records()  # if this process is killed, the test that ran then is the one without an end
    signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, min(_seconds, 1e6))
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stop(signum: int, frame: FrameType | None) -> None:
    for child in multiprocessing.active_children():
        child.kill()
    pytest.fail(NO_END)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the outcome and the fingerprints of a test."""
    if report.when == "call" or report.outcome != "passed":
        text = "" if report.outcome == "passed" else str(report.longrepr)[-2000:]
        outcome = NO_END if f"Failed: {NO_END}" in text else report.outcome
        _outcomes[report.nodeid] = {"outcome": outcome, "prints": list(_fingerprints), "text": text}


def write_records() -> None:
    """Write the records of the tests so far."""
    if _records is not None:
        Path(_records).write_text(json.dumps(_outcomes))


def pytest_sessionfinish() -> None:
    """Write the records of all tests."""
    write_records()


# -- the runs --------------------------------------------------------------------------------------------------------

Record = dict[str, Any]
"""Outcome, fingerprints and error of one test."""


class Limits(NamedTuple):
    """Seconds for one test, and for all tests of one run."""

    test: float
    run: float


def run_tests(tests: Path, selected: Sequence[str], role: str, limits: Limits) -> dict[str, Record]:
    """Run tests (folders, files, or ids of tests) with the callbacks of a role; return the record of each test."""
    with tempfile.TemporaryDirectory(prefix="lightnings-tests-", ignore_cleanup_errors=True) as work:
        return _run_tests(tests, selected, role, Path(work), limits)


def _run_tests(tests: Path, selected: Sequence[str], role: str, work: Path, limits: Limits) -> dict[str, Record]:
    registration = work / "everywhere-1.0.dist-info"
    registration.mkdir(parents=True, exist_ok=True)
    (registration / "METADATA").write_text("Metadata-Version: 2.1\nName: everywhere\nVersion: 1.0\n")
    (registration / "entry_points.txt").write_text(
        f"[lightning.pytorch.callbacks_factory]\neverywhere = {Path(__file__).stem}:callbacks\n"
    )
    records = work / "records.json"
    path = [str(work), str(Path(__file__).parent), str(tests), *sys.path[1:]]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "LIGHTNING_FAILURES_CACHE": str(work / "cache"),
        ROLE: role,
        RECORDS: str(records),
        TEST_LIMIT: str(limits.test),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors", "-p", Path(__file__).stem]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", str(work / "tmp"), "--rootdir", str(tests)]
    command += ["-c", os.devnull, "--tb=short", *selected]
    with (work / "output.txt").open("wb") as output:  # no pipe, which processes that a test left would hold open
        run = subprocess.Popen(
            command, cwd=tests, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        with suppress(subprocess.TimeoutExpired):
            run.wait(limits.run)
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)  # with the processes that its tests left
        run.wait()
    return json.loads(records.read_text()) if records.is_file() else {}


def same(one: Record | None, other: Record | None) -> bool:
    """Return whether a test had the same outcome and left the same behind in two runs."""
    return bool(one and other) and all(one[key] == other[key] for key in ("outcome", "prints"))


def error_lines(text: str) -> str:
    r"""Return the lines of a report that hold the error, else the last line; without the folders of this machine.

    >>> error_lines("/home/me/test.py:1: in f\nE   No file: '/home/me/a.txt'")
    "E   No file: '.../a.txt'"
    """
    lines = text.splitlines()
    errors = [line for line in lines if line.startswith("E ")] or lines[-1:]
    return re.sub(r"/\S*/", ".../", "\n".join(errors))


def compare(records: dict[str, dict[str, Record]]) -> dict[str, Any]:
    """Sort the tests into those that say nothing, unchanged, unstable, keys and files, and differences."""
    plain, failures, again, control = (records[role] for role in ROLES)
    result: dict[str, Any] = {"tests": len(plain), "skipped or failing": 0, "unchanged": 0}
    result |= {"unstable": [], "keys and files": [], "explained": {}, "differ": {}}
    for name in sorted({*plain, *failures}):
        first, with_failures, with_control = plain.get(name), failures.get(name), control.get(name)
        if same(first, with_failures):
            result["unchanged" if first["outcome"] == "passed" else "skipped or failing"] += 1
        elif not same(first, again.get(name)):
            result["unstable"].append(name)
        elif same(with_control, with_failures) and with_failures["outcome"] != first["outcome"]:
            result["keys and files"].append(name)
        elif reason := EXPLAINED.get(name.split("::")[-1]):
            result["explained"][name] = reason
        else:
            result["differ"][name] = {
                "plain": first and first["outcome"],
                "control": with_control and with_control["outcome"],
                "failures": with_failures and with_failures["outcome"],
                "text": with_failures and error_lines(with_failures["text"]),
            }
    return result


def measure(tests: Path, folder: str, limits: Limits) -> dict[str, Any]:
    """Run the tests of one folder, or file, in all roles; return how they compare."""
    records: dict[str, dict[str, Record]] = {role: {} for role in ROLES}
    selected = [f"tests_pytorch/{folder}"]
    for role in ROLES:
        if role == "plain again":
            plain, failures = records["plain"], records["failures"]
            selected = sorted(name for name in {*plain, *failures} if not same(plain.get(name), failures.get(name)))
        if not selected:
            break
        records[role] = run_tests(tests, selected, role, limits)
        if not records[role]:
            print(f"{folder}: no test could be collected; run pytest on the folder to see why", flush=True)
            break
        passed = sum(record["outcome"] == "passed" for record in records[role].values())
        print(f"{folder}, {role}: {passed} of {len(records[role])} passed", flush=True)
    return compare(records)


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="checkout of Lightning, which holds tests/tests_pytorch")
    parser.add_argument("--select", nargs="+", default=FOLDERS, help="folders or files of tests_pytorch")
    parser.add_argument("--test-limit", type=float, default=300, help="seconds for one test")
    parser.add_argument("--limit", type=float, default=7200, help="seconds for one folder and run")
    parser.add_argument("--output", type=Path, help="JSON file for the figures; those of other folders in it stay")
    options = parser.parse_args()
    tests = (options.checkout / "tests").resolve()
    if not (tests / "tests_pytorch").is_dir():
        parser.error(f"{tests} holds no tests_pytorch: give the root of a checkout of Lightning")

    limits = Limits(test=options.test_limit, run=options.limit)
    measured: dict[str, dict[str, Any]] = {}
    if options.output and options.output.is_file():
        former = json.loads(options.output.read_text())
        measured = former["folders"] if former["lightning"] == L.__version__ else {}
    for folder in options.select:
        measured[folder] = measure(tests, folder, limits)
        if options.output:  # after each folder, since all of them take hours
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps({"lightning": L.__version__, "folders": measured}, indent=1) + "\n")
        for name, entry in measured[folder]["differ"].items():
            print(f"DIFFERS {name}: {entry['plain']}, control {entry['control']}, failures {entry['failures']}")
    totals = {key: sum(one[key] for one in measured.values()) for key in COUNTED}
    totals |= {key: sum(len(one[key]) for one in measured.values()) for key in COLLECTED}
    print(f"{', '.join(measured)}: " + ", ".join(f"{count} {key}" for key, count in totals.items()))
    sys.exit(totals["differ"] > 0)


if __name__ == "__main__":
    main()
