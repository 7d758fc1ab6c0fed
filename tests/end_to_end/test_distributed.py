"""One, two, three and four real ranks produce the same report, whatever the length of the validation set."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.directions import FailureDirections
from tests.helpers.toy import Images, OracleClassifier
from tests.processes.ddp_fit import CASES
from tests.processes.launch import fork, launch, ranks

pytestmark = pytest.mark.slow

WORLDS = (2, 3, 4)
LENGTHS = {  # of the first loader, and the seed of its images
    "does not divide": (157, 0),
    "fewer batches than processes": (10, 0),
    "fewer examples than processes": (3, 0),
    "one example": (1, 0),
    "shuffled": (101, 0),
    "every process sees all": (90, 0),
    "several loaders": (70, 0),
    "no batch": (125, 125),
    "a sampler of one's own": (61, 61),
    "test": (69, 0),
    "validate": (157, 0),
}
HAS_DIRECTIONS = ("does not divide", "shuffled", "validate", "no batch", "every process sees all")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """``seen(world)``: the folder with the results of each of ``world`` ranks, which are started once."""

    @functools.cache
    def launched(world: int) -> Path | AssertionError:
        folder: Path = tmp_path_factory.mktemp(f"{world}_processes")
        try:
            if world == 2:  # here Lightning starts the second rank by itself
                all_ended = launch("ddp_fit", folder, world, timeout=300)
            else:
                environments = ranks(world) if world > 1 else [{}]
                all_ended = fork("ddp_fit", folder, world, environments=environments, timeout=300)
            for ended in all_ended:
                assert ended.status == 0, ended.said[-3000:]
        except AssertionError as error:
            return error
        return folder

    def of(world: int) -> Path:
        found = launched(world)
        if isinstance(found, AssertionError):
            raise found
        return found

    return of


def written(folder: Path, case: str, world: int) -> list[dict[str, Any]]:
    return [json.loads((folder / case / f"rank_{rank}.json").read_text()) for rank in range(world)]


def comparable(report: dict[str, Any], *leave_out: str) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("timings", "run_id", *leave_out)}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the numbers and texts of a report by their paths."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {place: one for key, inner in items for place, one in flat(inner, f"{path}/{key}").items()}
    return {path: value}


SOLVED = ("weight", "bias", "out_of_fold")
SOLVER_DECIDES = {"est_values": 1e-3, "cosine": 1e-3, "explained": 0.05}
"""Relative differences of what the tolerance of the solver decides: directions, decision values, the order of some."""


def assert_alike(one: Any, other: Any) -> None:
    """Assert equal keys, texts and integers, and floats that are equal up to rounding.

    Two of the hardest and easiest examples may differ or change places: batches of other images change the last bit of
    an embedding, and some decision values are as close to each other.
    """
    first, second = flat(one), flat(other)
    assert list(first) == list(second)
    lists: dict[str, list[set[int]]] = {}
    for place, value in first.items():
        if "est_ids" in place:
            left, right = lists.setdefault(place.rsplit("/", 1)[0], [set(), set()])
            left.add(value)
            right.add(second[place])
            continue
        expected: Any = second[place]
        if isinstance(value, float):
            # values of support vectors lie within the tolerance of the solver, on either side of each other
            rounding = next((rel for name, rel in SOLVER_DECIDES.items() if name in place), 1e-5)
            expected = pytest.approx(expected, rel=rounding, abs=1e-6)
        assert value == expected, place
    assert all(len(left ^ right) <= 2 for left, right in lists.values()), lists


def members(trees: dict[str, Any], grouping: str) -> list[tuple[int, int]]:
    """Return (id, class) of every example in the leaves of the trees, with repetitions."""
    return sorted(
        (i, int(key.removeprefix(f"{grouping} class ")))
        for key, leaves in trees.items()
        if key.startswith(grouping)
        for leaf in leaves
        for i in leaf["ids"]
    )


def truth(case: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (id, label) and (id, prediction) of every example, computed without a Trainer."""
    size, seed = LENGTHS[case]
    data = Images(size, seed=seed)
    predictions = OracleClassifier()(torch.stack([image for image, _ in data])).argmax(1)
    return list(enumerate(data.labels.tolist())), list(enumerate(predictions.tolist()))


def test_cases__are_all_judged():
    assert set(CASES) == set(LENGTHS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", [1, *WORLDS])
def test_ddp__every_example_is_graded_once_on_every_rank(seen, world, case):
    """Samplers pad: 157 examples on 2 ranks become 158. Labels and predictions are those of the model alone."""
    labels, predictions = truth(case)
    for rank in written(seen(world), case, world):
        report = rank["report"]
        assert report["examples"] == sum(entry["examples"] for entry in report["classes"]) == len(labels)
        assert report["coverage"] == 1.0
        assert members(rank["trees"], "label") == labels
        assert members(rank["trees"], "prediction") == predictions
        right = sum(label == guess for label, guess in zip(labels, predictions, strict=True))
        assert report["accuracy"] == pytest.approx(right / len(labels))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_ddp__one_report_on_all_ranks_as_in_one_process(seen, world, case):
    (alone,) = written(seen(1), case, 1)
    first, *others = written(seen(world), case, world)
    for other in others:
        assert comparable(other["report"]) == comparable(first["report"])
        assert other["report"]["run_id"] == first["report"]["run_id"] != alone["report"]["run_id"]
        assert other["trees"] == first["trees"]
    steps = "global_step"  # more ranks, fewer steps
    assert_alike(comparable(first["report"], steps), comparable(alone["report"], steps))
    assert first["trees"] == alone["trees"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_ddp__same_directions_on_all_ranks_as_in_one_process(seen, world, case):
    alone = FailureDirections.load(seen(1) / case / "rank_0.safetensors")
    assert (len(alone.classes) > 0) == (case in HAS_DIRECTIONS), alone.skipped
    for rank in range(world):
        found = FailureDirections.load(seen(world) / case / f"rank_{rank}.safetensors")
        assert found.skipped == alone.skipped
        assert found.classes.tolist() == alone.classes.tolist()
        for name in ("weight", "bias", "cv_score", "p_value", "c", "mean", "std", "out_of_fold"):
            one, other = getattr(found, name), getattr(alone, name)
            # the last bit of an embedding changes within the tolerance of the SVM's solver
            tolerance = {"rtol": 1e-3, "atol": 3e-4} if name in SOLVED else {"rtol": 1e-4, "atol": 1e-6}
            torch.testing.assert_close(one, other, **tolerance, equal_nan=True, msg=f"{name} of rank {rank}")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", WORLDS)
def test_ddp__same_keys_in_the_same_order_on_every_rank(seen, world, case):
    """Lightning reduces the keys in order: a different order on one rank mixes up values or blocks all ranks."""
    (alone,) = written(seen(1), case, 1)
    assert "failures/accuracy" in alone["keys"]
    assert "failures/analysis_age" in alone["keys"] or case == "test"
    for rank in written(seen(world), case, world):
        assert rank["keys"] == alone["keys"]
        assert list(rank["metrics"]) == list(alone["metrics"])
        assert rank["metrics"] == pytest.approx(alone["metrics"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("world", WORLDS)
def test_ddp__files_are_written_once_and_every_loader_has_its_own(seen, world):
    for case in CASES:
        found, expected = (last_reports(one / case) for one in (seen(world), seen(1)))
        assert list(found) == list(expected) == ([0, 1] if case in ("several loaders", "no batch") else [0])
        for index in found:
            assert_alike(comparable(found[index], "global_step"), comparable(expected[index], "global_step"))


def last_reports(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the last report of each loader; those of single analyses are in folders of their own."""
    run = folder / "failures" / "no_logger"
    files = [*run.glob("*/report.json"), *run.glob("*/dataloader_*/report.json")]
    reports = [json.loads(path.read_text()) for path in files]
    assert len({one["dataloader"] for one in reports}) == len(reports)
    return {one["dataloader"]: one for one in sorted(reports, key=lambda one: one["dataloader"])}


@pytest.mark.parametrize("world", WORLDS)
def test_ddp__same_digests_as_in_one_process(seen, world):
    for case in CASES:
        found, expected = (
            [ExampleTable.load(path) for path in sorted((one / case).rglob("examples.safetensors"))]
            for one in (seen(world), seen(1))
        )
        assert len(found) == len(expected) > 0
        for table, other in zip(found, expected, strict=True):
            assert torch.equal(table.ids, other.ids)
            assert torch.equal(table.digests, other.digests)
            assert len(table.digests.unique()) == len(table)


@pytest.mark.parametrize("world", WORLDS)
def test_pitfall_3__a_rank_without_a_batch_sends_what_the_others_expect(seen, world):
    """Only the first rank has batches of the first loader; torchmetrics alone would end the process here."""
    (alone,) = written(seen(1), "no batch", 1)
    for rank in written(seen(world), "no batch", world):
        assert rank["report"]["examples"] == 125
        assert_alike(comparable(rank["report"]), comparable(alone["report"]))
        assert rank["metrics"]["failures/accuracy"] == pytest.approx(alone["metrics"]["failures/accuracy"])


@pytest.mark.parametrize("world", WORLDS)
def test_pitfall_9__a_sampler_that_lightning_wraps_anew_for_validation(seen, world):
    """The sampler draws backwards; each rank gets every n-th example, and ids remain indices of the dataset."""
    labels, _ = truth("a sampler of one's own")
    for rank in written(seen(world), "a sampler of one's own", world):
        assert members(rank["trees"], "label") == labels
