"""Trainings that are interrupted at each stage, in several ways, and resumed: nothing is lost or counted twice.

Every training is a process of its own (``tests/processes/interrupted_fit.py``), and every signal is a real one.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_failures.core.locks import LOCK_FILE
from tests.end_to_end.test_added import FROM_POOL
from tests.processes.launch import Job, run_forked

LIMIT = 120.0  # seconds that one training may take

HOWS = ["SIGTERM", "SIGKILL", "SIGINT", "exception"]
STAGES = [
    "embedding a validation batch",
    "fitting directions",
    "fitting trees",
    "decision",
    "embedding the training set",
    "writing the report",
    "training step",
]


class Runs:
    """Trainings in forked processes, each of which may be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole: dict[str, Path] = {}

    def train(self, folder: Path, name: str, *, expect: int | None = 0, **job: Any) -> int:
        """Train in a process; return its exit status."""
        (status,) = self.train_all([{"folder": str(folder), "name": name, **job}])
        if expect is not None:
            assert status == expect, (folder / f"{name}.log").read_text()[-3000:]
        return status

    def train_all(self, jobs: list[dict[str, Any]]) -> list[int]:
        """Train several at the same time."""
        forks = []
        for job in jobs:
            folder = Path(job["folder"])
            folder.mkdir(parents=True, exist_ok=True)
            forks.append(Job("interrupted_fit", (json.dumps(job),), {}, str(folder / f"{job['name']}.log")))
        return [ended.status for ended in run_forked(forks, timeout=LIMIT)]

    def whole(self, **job: Any) -> Path:
        """Return the folder of the uninterrupted training."""
        key = json.dumps(job, sort_keys=True)
        if key not in self._whole:
            folder = self.folder / f"whole-{len(self._whole)}"
            self.train(folder, "whole", **job)
            self._whole[key] = folder
        return self._whole[key]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("interruption"))


def outcome(folder: Path, name: str) -> dict[str, Any]:
    """Return the report without timings, and the weights bit for bit."""
    return json.loads((folder / f"{name}.json").read_text())


def drawn(folder: Path, name: str) -> dict[int, list[Any]]:
    """Return the examples of each epoch in order, with their weights."""
    epochs: dict[int, list[Any]] = {}
    for line in (folder / f"{name}.jsonl").read_text().splitlines():
        note = json.loads(line)
        epochs.setdefault(note["epoch"], []).extend(zip(note["ids"], *note["weights"], strict=True))
    return epochs


def last_checkpoint(folder: Path) -> Path:
    return max(folder.glob("checkpoints/*.ckpt"), key=lambda path: int(re.findall(r"epoch=(\d+)", path.name)[0]))


def check_files(folder: Path, *, killed: bool) -> None:
    """Assert that all files are complete; only a killed process may leave temporary files, and those of locks."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    left = [path.name for path in folder.rglob(".*") if path.is_file()]
    assert all(name.startswith(".writing-") or name.endswith(".tmp") or name == LOCK_FILE for name in left)
    assert killed or not left


def interrupt_and_resume(runs: Runs, folder: Path, job: dict[str, Any], stage: str, how: str, *, epoch: int = 1):
    """Interrupt a training and resume it from its last checkpoint; return the epoch at which it resumed."""
    fault = {"stage": stage, "how": how, "epoch": epoch}
    status = runs.train(folder, "cut", expect=None, fault=fault, **job)
    ended = not (folder / "cut.json").exists()
    log = (folder / "cut.log").read_text()
    assert (status, ended) == {
        "SIGTERM": (0, True),
        "SIGKILL": (-9, True),
        "SIGINT": (1, True),
        # an error of a writer is reported, and the training continues
        "exception": (0, False) if stage == "writing the report" else (1, True),
    }[how], log[-3000:]
    check_files(folder, killed=how == "SIGKILL")
    if how != "SIGKILL" and ended:
        left = json.loads((folder / "cut.left.json").read_text())
        assert left.pop("exception") in {"SIGTERM": "SIGTERMException", "SIGINT": "KeyboardInterrupt"}.get(
            how, "PlantedError"
        )
        assert left == {"hooks": 0, "wrapper": False, "samplers": []}
    if not ended:
        return None
    checkpoint = last_checkpoint(folder)
    runs.train(folder, "resumed", ckpt_path=str(checkpoint), **job)
    check_files(folder, killed=how == "SIGKILL")
    return int(re.findall(r"epoch=(\d+)", checkpoint.name)[0]) + 1


def check_same(whole: Path, folder: Path, begins: int | None) -> None:
    name = "cut" if begins is None else "resumed"
    assert outcome(folder, name) == (expected := outcome(whole, "whole"))
    (run,) = (folder / "failures" / "no_logger").iterdir()  # a resumed run writes to the folder of the interrupted one
    written = json.loads((run / "report.json").read_text())
    assert written.pop("timings")
    run_id = written.pop("run_id")
    assert {json.loads(path.read_text())["run_id"] for path in run.glob("epoch=*/report.json")} == {run_id}
    assert written == expected["report"]
    assert len(list(run.glob("epoch=*/report.json"))) == (2 if begins is None else 3)  # one could not be written
    planned = drawn(whole, "whole")
    assert drawn(folder, name) == {epoch: ids for epoch, ids in planned.items() if epoch >= (begins or 0)}


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("stage", STAGES)
def test_resume__after_each_stage_as_if_nothing_had_been(runs, tmp_path, stage, how):
    job = {"interventions": "upweight later" if stage == "embedding the training set" else "upweight", "workers": 0}
    job |= {"epochs": 3}
    begins = interrupt_and_resume(runs, tmp_path, job, stage, how)
    # at SIGTERM Lightning finishes an epoch whose batches are done, and its checkpoint
    finished = how == "SIGTERM" and stage not in ("training step", "embedding a validation batch")
    assert begins == (None if (stage, how) == ("writing the report", "exception") else 2 if finished else 1)
    check_same(runs.whole(**job), tmp_path, begins)
    if how == "exception" and begins is not None:
        assert outcome(tmp_path / "again", "again") == outcome(runs.whole(**job), "whole")
        assert drawn(tmp_path / "again", "again") == drawn(runs.whole(**job), "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interventions", "workers"),
    [("upweight later", 0), ("filtered", 0), ("weight_key", 0), ("none", 2), ("weight_key", 2), ("both", 2)],
)
def test_resume__workers_and_interventions(runs, tmp_path, interventions, workers):
    job = {"interventions": interventions, "workers": workers, "epochs": 3}
    if interventions == "none":
        job["order"] = "as they come"
    begins = interrupt_and_resume(runs, tmp_path, job, "training step", "SIGKILL")
    assert begins == 1
    check_same(runs.whole(**job), tmp_path, begins)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["by epoch", "shuffled"])
def test_resume__without_interventions_the_order_is_as_without_the_callback(runs, tmp_path, order):
    """Lightning keeps no random numbers in checkpoints, and starts workers before it sets the epoch of a sampler."""
    job = {"epochs": 3, "workers": 2, "order": order}
    runs.train(tmp_path, "whole", interventions="none", **job)
    checkpoint = str(tmp_path / "checkpoints" / "epoch=0.ckpt")
    for name, interventions in (("with", "none"), ("without", None)):
        runs.train(tmp_path, name, interventions=interventions, ckpt_path=checkpoint, **job)
    assert drawn(tmp_path, "with") == drawn(tmp_path, "without")
    assert outcome(tmp_path, "with")["weights"] == outcome(tmp_path, "without")["weights"]
    assert drawn(tmp_path, "with")[1] != drawn(tmp_path, "whole")[1]


# -- in the midst of an epoch: 6 batches of 16, a checkpoint at the second batch of epoch 1 -------------------

BATCH = 16


def cut_within_an_epoch(runs: Runs, folder: Path, how: str, keeps: dict[str, Any], step: int, **job: Any) -> None:
    fault = {"stage": "training step", "how": how, "epoch": 1}  # the fourth batch
    runs.train(folder, "cut", expect=None, fault=fault, keeps={"filename": "{step}"} | keeps, **job)
    runs.train(folder, "resumed", ckpt_path=str(folder / "checkpoints" / f"step={step}.ckpt"), **job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interventions", "workers", "how"),
    [("none", 2, "SIGKILL"), ("upweight", 0, "SIGKILL"), ("filtered", 2, "SIGKILL"), ("upweight", 2, "SIGTERM")],
)
def test_mid_epoch__a_stateful_loader_loses_and_doubles_nothing(runs, tmp_path, interventions, workers, how):
    job = {"interventions": interventions, "workers": workers, "epochs": 3, "stateful": True}
    if interventions == "none":
        job["order"] = "as they come"
    # at SIGTERM Lightning stops after the batch and saves a checkpoint
    keeps, batches = ({"every_n_train_steps": 4}, 2) if how == "SIGKILL" else ({"save_on_exception": True}, 4)
    cut_within_an_epoch(runs, tmp_path, how, keeps, 6 + batches, **job)
    planned = drawn(runs.whole(**job), "whole")
    before, after = drawn(tmp_path, "cut"), drawn(tmp_path, "resumed")
    assert before[0] == planned[0]
    assert before[1][: batches * BATCH] + after[1] == planned[1]
    assert after[2] == planned[2]
    assert outcome(tmp_path, "resumed") == outcome(runs.whole(**job), "whole")


@pytest.mark.slow
def test_mid_epoch__a_plain_loader_begins_the_epoch_anew_and_leaves_its_end_out(runs, tmp_path):
    job = {"interventions": "upweight", "workers": 0, "epochs": 2}
    cut_within_an_epoch(runs, tmp_path, "SIGKILL", {"every_n_train_steps": 4}, 8, **job)
    planned = drawn(runs.whole(**job), "whole")[1]
    assert drawn(tmp_path, "resumed") == {1: planned[: 4 * BATCH]}  # two batches are repeated, and two are lost


@pytest.mark.slow
def test_mid_epoch__after_the_last_batch_the_validation_of_the_epoch_is_left_out(runs, tmp_path):
    job = {"interventions": "upweight", "workers": 0, "epochs": 2}
    cut_within_an_epoch(runs, tmp_path, "SIGKILL", {"every_n_train_steps": 6}, 6, **job)
    planned = drawn(runs.whole(**job), "whole")[1]
    assert sorted(planned) != sorted(set(planned))
    resumed = drawn(tmp_path, "resumed")
    assert len(set(resumed[1])) == len(resumed[1]) == len(planned)  # nothing was decided, so no example is upweighted


@pytest.mark.slow
def test_mid_epoch__an_epoch_that_ended_early_is_followed_by_the_next(runs, tmp_path):
    """As with ``max_time``. Workers get their first batches before the epoch begins."""
    job = {"interventions": "upweight", "epochs": 3}
    runs.train(tmp_path, "cut", workers=0, stop=[1, 2], **job)
    assert len(drawn(tmp_path, "cut")[1]) == 3 * BATCH
    for workers in (0, 2):
        checkpoint = str(tmp_path / "checkpoints" / "epoch=1.ckpt")
        runs.train(tmp_path, f"resumed-{workers}", workers=workers, ckpt_path=checkpoint, **job)
    assert drawn(tmp_path, "resumed-0").keys() == {2}
    assert drawn(tmp_path, "resumed-2") == drawn(tmp_path, "resumed-0")


@pytest.mark.slow
def test_mid_epoch__a_checkpoint_of_a_validation_within_the_epoch(runs, tmp_path):
    job = {"interventions": "upweight", "workers": 0, "epochs": 3, "stateful": True}
    job |= {"options": {"val_check_interval": 0.5}}
    cut_within_an_epoch(runs, tmp_path, "SIGKILL", {"save_on_train_epoch_end": False}, 9, **job)
    planned = drawn(runs.whole(**job), "whole")
    assert drawn(tmp_path, "cut")[1][: 3 * BATCH] + drawn(tmp_path, "resumed")[1] == planned[1]
    assert outcome(tmp_path, "resumed") == outcome(runs.whole(**job), "whole")


# -- elsewhere, and with others ------------------------------------------------------------------------------


@pytest.mark.slow
def test_resume__in_another_folder_with_an_empty_cache(runs, tmp_path):
    job = {"interventions": "both", "workers": 0, "epochs": 3}
    fault = {"stage": "training step", "how": "SIGKILL", "epoch": 1}
    runs.train(tmp_path / "here", "cut", expect=-9, fault=fault, **job)
    checkpoint = shutil.move(tmp_path / "here" / "checkpoints" / "epoch=0.ckpt", tmp_path)
    shutil.rmtree(tmp_path / "here")
    runs.train(tmp_path / "there", "resumed", ckpt_path=str(checkpoint), **job)
    resumed, whole = outcome(tmp_path / "there", "resumed"), outcome(runs.whole(**job), "whole")
    # the diary is stored in the folder of a run: a run in another folder starts a new one
    assert resumed["report"].pop("modes") != whole["report"].pop("modes")
    assert resumed == whole
    assert not (tmp_path / "here").exists()


@pytest.mark.slow
def test_resume__with_another_pool_picks_anew(runs, tmp_path):
    job = {"workers": 0, "epochs": 3}
    whole = runs.whole(interventions="filtered", **job)
    checkpoint = str(whole / "checkpoints" / "epoch=0.ckpt")
    runs.train(tmp_path, "resumed", interventions="another pool", ckpt_path=checkpoint, **job)
    added = {
        epoch: [index - FROM_POOL for (index,) in ids if index >= FROM_POOL]
        for epoch, ids in drawn(tmp_path, "resumed").items()
    }
    assert any(index >= FROM_POOL for (index,) in drawn(whole, "whole")[1])
    assert not added[1]
    assert len(added[2]) > 5
    assert max(added[2]) < 90


@pytest.mark.slow
def test_cache__two_runs_and_a_purge_at_once(runs, tmp_path):
    """Each epoch has new images, most of them in both runs; the cache holds about one epoch of one run."""
    common = {"workers": 0, "epochs": 3, "fading": True}
    jobs = [
        {"name": "one", "interventions": "upweight", "rows": [0, 300], **common},
        {"name": "two", "interventions": "filtered", "rows": [100, 400], **common},
    ]
    alone, together, cache = tmp_path / "alone", tmp_path / "together", tmp_path / "cache"
    for job in jobs:
        job["cache"] = str(alone / "cache" / job["name"])
    assert runs.train_all([job | {"folder": str(alone)} for job in jobs]) == [0, 0]
    shared = {"folder": str(together), "cache": str(cache), "max_bytes": 20_000}
    purge = {"name": "purge", "purge": [str(together / "one.json"), str(together / "two.json")]}
    assert runs.train_all([job | shared for job in [*jobs, purge]]) == [0, 0, 0]
    for name in ("one", "two"):
        assert outcome(together, name) == outcome(alone, name)
        assert drawn(together, name) == drawn(alone, name)
    assert sum(map(bool, json.loads((together / "purge.json").read_text()))) > 2
    assert sum(path.stat().st_size for path in cache.rglob("*.safetensors")) <= 20_000
