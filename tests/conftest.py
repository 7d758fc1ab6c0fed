"""Configuration of all tests: one thread, a cache folder each, no network services, no deadlines, two processes.

Linear algebra libraries read their number of threads when they are loaded, so the environment is set before torch and
numpy are imported; processes that tests start inherit it. On matrices as small as those of the tests a second thread
only waits for the first: it doubled the processor time of a training.
"""

import gc
import itertools
import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import pytest
import torch
from hypothesis import settings

settings.register_profile("on any machine", deadline=None)  # a busy machine is no fault of an example
settings.load_profile("on any machine")

PROCESSES = 2
LONGEST = (
    "tests/test_site.py",
    "tests/test_docs_run.py",
    "tests/end_to_end/test_processes.py",
    "tests/end_to_end/test_interruption.py",
    "tests/cli/test_lightning_commands.py",
    "tests/report/html/test_in_a_browser.py",
    "tests/end_to_end/test_distributed.py",
    "tests/test_callback.py",
    "tests/end_to_end/test_hostile.py",
    "tests/cli/test_demo.py",
    "tests/end_to_end/test_synthetic_fit.py",
    "tests/writers/test_tensorboard_pages.py",
    "tests/core/test_home.py",
    "tests/doctor/test_doctor.py",
    "tests/doctor/test_costs.py",
    "tests/end_to_end/test_disk.py",
    "tests/end_to_end/test_fuzz.py",
    "tests/pools/test_embedder.py",
    "tests/end_to_end/test_interventions.py",
    "tests/end_to_end/test_added.py",
)
"""Files that two processes begin with, so that neither is left alone with a long one at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Run the whole suite in two processes, a file at a time; run a selection, or with ``-n 0``, as pytest does."""
    option = config.option
    selected = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    chosen = getattr(option, "numprocesses", 0) is not None  # 0: pytest-xdist is not installed
    if selected or chosen or option.usepdb or option.collectonly or hasattr(config, "workerinput"):
        return
    if (os.cpu_count() or 1) >= PROCESSES:
        option.numprocesses = PROCESSES
        option.dist = "loadfile"  # fixtures of a module are made once
        option.loadscopereorder = False


def pytest_collection_modifyitems(config, items):
    """Let several processes begin with the files that take longest."""
    if hasattr(config, "workerinput"):
        rank = {path: number for number, path in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.nodeid.split("::")[0], len(rank)))


def pytest_collection_finish():
    """Let the garbage collector leave alone what has been imported: a million objects, looked at in each collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _caches(tmp_path_factory):
    """New folders, one after the other; ``mktemp`` would list all earlier ones each time."""
    root = tmp_path_factory.mktemp("caches")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, _caches):
    cache = next(_caches)
    cache.mkdir()
    monkeypatch.setenv("LIGHTNING_FAILURES_CACHE", str(cache))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(20260000)  # the weights of toy models must not depend on which tests ran before
    yield
    torch.set_num_threads(threads)
