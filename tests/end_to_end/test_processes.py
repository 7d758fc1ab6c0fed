"""Several real processes: started in each way that Lightning supports, on two nodes, with a rank that fails or dies."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from lightning_failures.errors import ConfigurationError
from lightning_failures.report.gallery_storage import load_gallery
from lightning_failures.trainer.logits_hook import forward_once_more
from tests.helpers.toy import Images, OracleClassifier
from tests.processes.ddp_faults import COSTS_A_METHOD, GOES_ON, ONLY_FIRST, STAGES, STEERS
from tests.processes.ddp_steering import DATA
from tests.processes.ddp_stream import SHARES, SIZE
from tests.processes.launch import Ended, fork, free_port, launch, ranks

pytestmark = pytest.mark.slow

SECONDS = 60  # for a run with a fault in it; a hang is killed after LIMIT, and fails all tests of its launch
LIMIT = 420


def read(folder: Path, world: int = 2) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in range(world)]


def without(report: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("timings", "run_id", *keys)}


def union(seen: list[dict[str, Any]], epoch: int) -> list[int]:
    """Return the examples that all ranks together drew in an epoch."""
    return [index for one in seen for index in one["epochs"].get(str(epoch), [])]


# -- one process has nothing to evaluate ----------------------------------------------------------------------


def test_empty_rank__skips_the_analyses_and_the_run_goes_on(tmp_path):
    for ended in fork("ddp_empty", tmp_path, environments=ranks(2), timeout=LIMIT):
        assert ended.status == 0, ended.said[-3000:]
        assert ended.seconds < SECONDS
    for how in ("fit", "validate", "test"):
        first, second = (json.loads((tmp_path / f"{how}_{rank}.json").read_text()) for rank in (0, 1))
        assert not first["analysed"]
        assert not second["analysed"]
        assert first["steps"] == second["steps"] == (8 if how == "fit" else 0)
        assert sum("process 1 of 2 has no batch" in message for message in first["told"]) == 1


# -- streams -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    for ended in fork("ddp_stream", folder, environments=ranks(2), timeout=LIMIT):
        assert ended.status == 0, ended.said[-3000:]
    return folder


@pytest.mark.parametrize("case", SHARES)
def test_stream__the_page_shows_images_of_both_ranks(streamed, case):
    """Images of a stream cannot be read again: each rank keeps some as they pass, and the first one draws them all."""
    first, second = (json.loads((streamed / f"{case}_{rank}.json").read_text()) for rank in (0, 1))
    assert without(first) == without(second)
    assert first["examples"] == SIZE
    (path,) = (streamed / case).rglob("gallery.json")
    gallery = load_gallery(path)
    assert gallery.epoch == 1
    shown = {tile.id for picture in gallery.pictures for row in picture.rows for tile in row.tiles}
    ids = gallery.thumbnails.ids.tolist()
    assert ids == list(range(1000, 1000 + SIZE))  # fewer than are kept
    assert shown <= set(ids)
    if case == "every second":
        assert {i % 2 for i in shown} == {0, 1}

    # each thumbnail is the image of its id
    images = Images(SIZE).images.mean((1, 2, 3))
    assert torch.allclose(gallery.thumbnails.images.float().mean((1, 2, 3)) / 255, images, atol=0.005)
    (page,) = (streamed / case).rglob("report.html")
    assert page.read_text(encoding="utf-8").count("data:image/") > len(shown) > 10


# -- one process fails ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def warned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warn")
    for ended in fork("ddp_faults", folder, "warn", environments=ranks(2), timeout=LIMIT):
        assert ended.status == 0, ended.said[-3000:]
    return folder


@pytest.fixture(scope="module")
def raised(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raise")
    for ended in fork("ddp_faults", folder, "raise", environments=ranks(2), timeout=LIMIT):
        assert ended.status == 0, ended.said[-3000:]
    return folder


def faults(*leave_out: str) -> list[tuple[str, int]]:
    stages = [stage for stage in STAGES if stage not in leave_out]
    return [(stage, rank) for stage in stages for rank in (0, 1) if rank == 0 or stage not in ONLY_FIRST]


@pytest.mark.parametrize(("stage", "rank"), faults(*GOES_ON, *STEERS, *COSTS_A_METHOD))
def test_fault__skips_the_analysis_on_all_ranks_and_training_goes_on(warned, stage, rank):
    """The fault occurs in the first of two epochs."""
    seen = read(warned / f"{stage} {rank}")
    assert seen[rank]["fired"] >= 1
    assert seen[1 - rank]["fired"] == 0
    for number, one in enumerate(seen):
        assert one["steps"] == 6
        assert one["seconds"] < SECONDS
        assert number not in (0, rank) or "planted" in " ".join(one["warnings"])  # the first rank warns for the others
        assert one["analysed"] == 1
    assert seen[0]["report"] == seen[1]["report"]
    assert seen[0]["report"]["examples"] == 160
    assert [one["analyses"] for one in seen] == [1, 1]  # the analysis of the first epoch failed on both


@pytest.mark.parametrize(("stage", "rank"), faults(*(set(STAGES) - set(COSTS_A_METHOD))))
def test_fault__of_a_method_leaves_the_grades_on_all_ranks(warned, stage, rank):
    """The fault occurs in the first of two epochs, which is analysed nevertheless."""
    seen = read(warned / f"{stage} {rank}")
    assert seen[rank]["fired"] >= 1
    assert seen[1 - rank]["fired"] == 0
    for one in seen:
        assert (one["steps"], one["analysed"], one["analyses"]) == (6, 1, 2)
        assert one["seconds"] < SECONDS
    assert seen[0]["report"] == seen[1]["report"]
    assert seen[0]["report"]["examples"] == 160


@pytest.mark.parametrize(("stage", "rank"), faults(*(set(STAGES) - set(GOES_ON))))
def test_fault__in_what_only_people_see_leaves_the_analysis(warned, stage, rank):
    seen = read(warned / f"{stage} {rank}")
    assert seen[rank]["fired"] >= 1
    assert "planted" in " ".join(seen[rank]["warnings"])
    for one in seen:
        assert (one["steps"], one["analysed"], one["analyses"]) == (6, 1, 2)
        assert one["seconds"] < SECONDS
    assert seen[0]["report"] == seen[1]["report"]


@pytest.mark.parametrize(("stage", "rank"), faults(*(set(STAGES) - set(STEERS))))
def test_fault__of_an_intervention_leaves_no_plan_on_any_rank(warned, stage, rank):
    """A plan on one rank alone would silently draw some examples twice and others never."""
    seen = read(warned / f"{stage} {rank}")
    assert seen[rank]["fired"] >= 1
    for number, one in enumerate(seen):
        assert one["steps"] == 9
        assert one["seconds"] < SECONDS
        assert any("skips their decision" in text and "planted" in text for text in one["warnings"]), number
        assert one["analyses"] == 3  # the analysis itself succeeds
    assert seen[0]["report"] == seen[1]["report"]
    for epoch in (0, 1):
        assert sorted(union(seen, epoch)) == list(range(len(DATA)))
    later = union(seen, 2)  # the fault is gone, and the next decision takes effect
    assert len(later) == len(DATA)
    assert sorted(later) != list(range(len(DATA)))


@pytest.mark.parametrize(("stage", "rank"), faults(*GOES_ON))
def test_fault__with_on_error_raise_stops_all_ranks(raised, stage, rank):
    seen = read(raised / f"{stage} {rank}")
    one_by_one = ("embedding", "judging the training set", "picking from a pool")
    assert seen[rank]["fired"] == 1 or (stage in one_by_one and seen[rank]["fired"])
    assert "PlantedError: planted" in seen[rank]["raised"]
    assert seen[1 - rank]["raised"] is not None
    # the error of the other rank, or that it has closed the connection
    assert "planted" in seen[1 - rank]["raised"] or "peer" in seen[1 - rank]["raised"]
    assert all(one["seconds"] < SECONDS for one in seen)
    assert not any(one["analyses"] for one in seen)


# -- one process dies ----------------------------------------------------------------------------------------


def ends(folder: Path, how: str, failing: int) -> tuple[Ended, Ended, float]:
    """Start two ranks; return the failing one, the other, and the seconds between their ends."""
    ended = fork("ddp_killed", folder, how, failing, environments=ranks(2), timeout=180)
    begin, end = (float((folder / f"{name}.txt").read_text()) for name in ("failed_at", f"over_{1 - failing}"))
    return ended[failing], ended[1 - failing], end - begin


@pytest.mark.parametrize("killed", [0, 1])
def test_kill__of_one_rank_amid_the_analysis_ends_the_others_within_seconds(tmp_path, killed):
    """The other rank skips its analysis, and its training then fails: its peer is gone."""
    dead, survivor, seconds = ends(tmp_path, "killed", killed)
    assert dead.status == -9
    assert survivor.status not in (0, -9)
    assert "FailureModes skips this analysis" in survivor.said
    assert "peer" in survivor.said  # gloo reports that the connection was closed
    assert 0 < seconds < 30


def test_raise__amid_a_batch_of_one_rank_ends_the_others_within_seconds(tmp_path):
    """The others wait for this rank at the end of the validation, and end with it."""
    failed, other, seconds = ends(tmp_path, "raised", 1)
    assert failed.status not in (0, -9)
    assert other.status not in (0, -9)
    assert "planted" in failed.said
    assert "peer" in other.said
    assert 0 < seconds < 30


# -- ways to launch ------------------------------------------------------------------------------------------


def test_ddp_spawn__same_report_on_both_ranks(tmp_path):
    """The process that spawns the ranks gets back logged values and files only."""
    (ended,) = fork("ddp_spawn", tmp_path, timeout=180)
    assert ended.status == 0, ended.said[-3000:]
    first, second = read(tmp_path)
    assert (first["world"], second["world"]) == (2, 2)
    assert without(first["report"]) == without(second["report"])
    assert first["report"]["examples"] == 157
    back = json.loads((tmp_path / "back.json").read_text())
    assert back == {"report": False, "accuracy": pytest.approx(first["report"]["accuracy"])}
    (file,) = tmp_path.glob("failures/no_logger/*/report.json")
    assert without(json.loads(file.read_text())) == without(first["report"])


def test_fsdp__needs_a_gpu_says_lightning(tmp_path):
    """If this test fails, FSDP runs on the CPU and needs tests like those above."""
    with pytest.raises(ValueError, match="`fsdp` requires a GPU accelerator"):
        L.Trainer(accelerator="cpu", devices=2, strategy="fsdp", default_root_dir=tmp_path, logger=False)


@pytest.mark.parametrize("strategy", [FSDPStrategy(), ModelParallelStrategy()])
def test_forward__of_a_sharded_module_is_refused(strategy):
    """Ranks may have different numbers of batches, or one may have failed: the others would wait in the forward."""
    trainer = SimpleNamespace(strategy=strategy, world_size=2)
    with pytest.raises(ConfigurationError, match="Strategy shards the model, so that one process cannot call it"):
        forward_once_more(trainer, OracleClassifier(), torch.zeros(1, 3, 8, 8))


# -- two nodes -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Two nodes of one rank, each with its own cache and log folder."""
    folder = tmp_path_factory.mktemp("nodes")
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environments = [common | {"NODE_RANK": str(node), "LOCAL_RANK": "0"} for node in (0, 1)]
    for ended in fork("ddp_nodes", folder, 1, environments=environments, timeout=LIMIT):
        assert ended.status == 0, ended.said[-3000:]
    return folder


def test_nodes__share_nothing_and_report_the_same(nodes):
    first, second = (one["plain"] for one in read(nodes))
    assert (first["world"], second["world"]) == (2, 2)
    assert without(first["report"]) == without(second["report"])
    assert first["report"]["examples"] == 400
    assert not first["warnings"]
    assert not second["warnings"]
    written = [list(nodes.glob(f"node_{node}/logs/failures/no_logger/*/report.json")) for node in (0, 1)]
    assert written[0]
    assert not written[1]  # only the first rank writes


def test_nodes__each_embeds_its_share(nodes):
    sizes = [sum(one.stat().st_size for one in nodes.glob(f"node_{node}/cache/**/*.safetensors")) for node in (0, 1)]
    assert min(sizes) > 0.7 * max(sizes) > 0


def test_nodes__upweight_without_triage_needs_no_shared_folder(nodes):
    seen = [one["Upweight"] for one in read(nodes)]
    assert without(seen[0]["report"]) == without(seen[1]["report"])
    assert not seen[0]["warnings"]
    assert sorted(union(seen, 0)) == list(range(len(DATA)))
    assert len(union(seen, 1)) == len(DATA)
    assert len(set(union(seen, 1))) < len(DATA)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("Upweight with triage", "Processes must share one cache folder"),
        ("AddFiltered", "Processes must share one cache folder"),
        ("AddSynthetic", "Processes must share one log folder"),
    ],
)
def test_nodes__interventions_that_need_a_shared_folder_say_so_and_change_nothing(nodes, case, message):
    seen = [one[case] for one in read(nodes)]
    for one in seen:
        assert any("skips their decision" in text and message in text for text in one["warnings"])
        assert one["steps"] == 6
    for epoch in (0, 1):
        assert sorted(union(seen, epoch)) == ([] if case == "AddSynthetic" else list(range(len(DATA))))


# -- interventions -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steered")
    for ended in fork("ddp_steering", folder, environments=ranks(2), timeout=LIMIT):
        assert ended.status == 0, ended.said[-3000:]
    return folder


@pytest.mark.parametrize("case", ["Lightning's sampler", "a sampler of one's own", "DistributedSampler"])
def test_pitfall_9__ranks_share_one_weighted_epoch_whoever_made_the_sampler(steered, case):
    """Ranks with different seeds draw shares of the same epoch; epochs differ from each other."""
    seen = read(steered / case)
    assert seen[0]["report"] == seen[1]["report"]
    (intervention,) = seen[0]["report"]["interventions"]
    assert intervention["changes_training"]
    assert [len(one["epochs"]["1"]) for one in seen] == [len(DATA) // 2] * 2
    assert sorted(union(seen, 0)) == list(range(len(DATA)))
    for epoch in (1, 2):
        copies = [union(seen, epoch).count(index) for index in range(len(DATA))]
        dark = [count for count, is_dark in zip(copies, DATA.dark.tolist(), strict=True) if is_dark]
        bright = [count for count, is_dark in zip(copies, DATA.dark.tolist(), strict=True) if not is_dark]
        assert sum(dark) / len(dark) > 1.8 * sum(bright) / len(bright)
        # two independent draws would repeat some bright examples
        assert max(bright) <= 2
        assert sum(count > 1 for count in bright) <= 5
    assert [seen[0]["epochs"][epoch] for epoch in ("1", "2")] != [seen[0]["epochs"]["1"]] * 2


def test_ddp__without_lightnings_sampler_each_process_weighs_its_own_draws(steered):
    seen = read(steered / "sampler of each process")
    assert seen[0]["report"] == seen[1]["report"]
    for one in seen:
        assert one["steps"] == 18
        assert sorted(one["epochs"]["0"]) == list(range(len(DATA)))
        assert len(one["epochs"]["1"]) == len(DATA)
        assert len(set(one["epochs"]["1"])) < len(DATA)
        dark = DATA.dark[one["epochs"]["1"]].float().mean()
        assert dark > DATA.dark.float().mean() + 0.1


def test_ddp__generated_images_are_made_once_and_drawn_by_all(steered):
    seen = read(steered / "AddSynthetic")
    assert seen[0]["report"] == seen[1]["report"]
    (intervention,) = seen[0]["report"]["interventions"]
    assert intervention["added"] == 24
    (ledger,) = steered.glob("AddSynthetic/failures/**/ledger.jsonl")
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert len(rows) == sum(entry["made"] for entry in intervention["classes"])
    assert len({row["seed"] for row in rows}) == len(rows)
    for epoch in ("1", "2"):
        assert [one["sizes"][epoch] for one in seen] == [48, 48]
        assert all(one["epochs"][epoch] for one in seen)
        assert 10 <= len(union(seen, int(epoch))) <= 24


def test_ddp__ranks_with_different_encoders_are_refused(steered):
    for one in read(steered / "encoders apart"):
        assert one["configuration"]
        assert "the processes have different weights of colours" in one["raised"]


def test_ddp__weights_that_one_process_lacks_are_an_error_on_all(steered):
    first, second = read(steered / "weights missing")
    assert "nowhere" in second["raised"]
    assert first["raised"].startswith("process 1: EncoderError")


def test_ddp__a_checkpoint_that_cannot_be_written_leaves_nobody_waiting(steered):
    first, second = read(steered / "checkpoint unsaved")
    assert first["steps"] == second["steps"] > 0
    assert any("No space left" in text for text in first["warnings"])


def test_ddp__verdict_at_the_end_of_fit_is_measured_on_all_ranks(steered):
    first, second = read(steered / "verdict in fit")
    assert first == second
    assert first["steps"] == 9
    assert first["verdict"]["outcome"] in ("helped", "no evidence", "hurt")
    assert "with several processes" not in first["verdict"]["sentence"]
    assert not list((steered / "verdict in fit").rglob(".forks"))


def test_ddp__caches_apart_are_an_error_that_names_the_remedy(steered):
    seen = read(steered / "AddFiltered, caches apart")
    assert seen[0]["report"] == seen[1]["report"]
    for one in seen:
        assert any("Processes must share one cache folder" in text for text in one["warnings"])
    for epoch in (0, 1, 2):
        assert sorted(union(seen, epoch)) == list(range(len(DATA)))


def test_ddp__lottery_leaves_the_same_classes_alone_and_finds_the_effect(steered):
    seen = read(steered / "lottery")
    assert seen[0]["report"] == seen[1]["report"]
    (intervention,) = seen[0]["report"]["interventions"]
    assert sum("at random" in (entry["reason"] or "") for entry in intervention["classes"]) == 12
    assert intervention["verdict"]["examples"] >= 22  # classes; a few may have no flagged image in the report part
    assert intervention["verdict"]["outcome"] == "helped"


def test_ddp__verdict_by_forks_is_the_same_on_all_ranks(steered):
    first, second = read(steered / "verdict")
    assert first == second
    assert first["pairs"] == 1
    assert first["examples"] > 50
    assert not [one for one in (steered / "verdict" / "forks").rglob("*") if one.is_file()]


# -- the tests can fail --------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [launch, fork])
def test_launch__what_hangs_is_killed_and_fails(tmp_path, start):
    with pytest.raises(AssertionError, match=r"is not over after 0.1 s"):
        start("ddp_fit", tmp_path, 1, timeout=0.1)
