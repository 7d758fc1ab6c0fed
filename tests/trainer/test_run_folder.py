import gc
import os
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.run_folder import (
    claim_former_folder,
    claim_run_folder,
    discard_temporary,
    failures_folder,
    leave_folder,
    safe_name,
)
from lightning_failures.trainer.schedule import RunState
from tests.helpers.toy import trainer


@settings(deadline=None, max_examples=200)
@given(st.text())
def test_safe_name__is_one_component_for_any_text(text):
    name = safe_name(text)
    assert name not in ("", ".", "..")
    assert not set(name) & set('/\\:*?"<>|\0\n')
    assert not name.startswith(".")
    assert os.path.split(name) == ("", name)
    assert len(name) <= 80
    assert safe_name(name) == safe_name(safe_name(name))


@pytest.mark.parametrize("text", ["../../etc/passwd", "/", "", "...", "C:\\temp", "a\0b", "~", " "])
def test_safe_name__stays_in_its_folder(tmp_path, text):
    folder = tmp_path / safe_name(text)
    assert folder.resolve().parent == tmp_path.resolve()
    folder.mkdir()


def test_safe_name__keeps_what_is_harmless():
    assert safe_name("epoch=3-step.10_x") == "epoch=3-step.10_x"
    assert safe_name("Zürich 猫") == "Zürich_猫"
    assert safe_name("x" * 300, limit=10) == "x" * 10


@pytest.mark.parametrize("logger", [TensorBoardLogger, CSVLogger])
def test_folder__versioned_loggers_hold_it(tmp_path, logger):
    run = trainer(tmp_path, logger=logger(tmp_path, name="run"))
    folder, run_id = failures_folder(run, Communicator())
    assert folder == tmp_path / "run" / "version_0" / "failures"
    assert run_id == "0"


def test_folder__runs_without_a_version_get_one_of_their_own(tmp_path):
    first, first_id = failures_folder(trainer(tmp_path), Communicator())
    second, second_id = failures_folder(trainer(tmp_path), Communicator())
    assert first_id != second_id
    assert first == tmp_path / "failures" / "no_logger" / first_id
    assert re.fullmatch(r"[0-9a-f]{8}", second_id)
    assert second.parent == first.parent


def test_folder__a_resumed_run_comes_back_to_it(tmp_path):
    folder, run_id = failures_folder(trainer(tmp_path), Communicator())
    assert failures_folder(trainer(tmp_path), Communicator(), run_id=run_id) == (folder, run_id)


def test_folder__wandb_runs_are_told_apart_by_their_id(tmp_path):
    logger = WandbLogger(project="a/b", save_dir=tmp_path, id="run7", offline=True)
    folder, run_id = failures_folder(trainer(tmp_path, logger=logger), Communicator())
    assert run_id == "run7"
    assert folder == tmp_path / "failures" / "a_b" / "run7"


def test_folder__several_loggers_the_first_decides(tmp_path):
    loggers = [CSVLogger(tmp_path, name="one"), TensorBoardLogger(tmp_path, name="two")]
    folder, _ = failures_folder(trainer(tmp_path, logger=loggers), Communicator())
    assert folder == tmp_path / "one" / "version_0" / "failures"


def test_folder__of_another_file_system_is_named_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remote = trainer(tmp_path, logger=TensorBoardLogger("memory://bucket/runs", name="run"))
    with pytest.warns(
        UserWarning, match=r"memory://bucket/runs/run/version_0 is not on this machine\. .* writes its files"
    ):
        folder, _ = failures_folder(remote, Communicator())
    assert folder == tmp_path / "memory_bucket_runs_run_version_0" / "failures"
    local = trainer(tmp_path, logger=TensorBoardLogger(f"file://{tmp_path}", name="run"))
    assert failures_folder(local, Communicator())[0] == tmp_path / "run" / "version_0" / "failures"


def test_folder__fast_dev_run_is_temporary(tmp_path):
    folder, _ = failures_folder(run := trainer(tmp_path, fast_dev_run=True), Communicator())
    assert tmp_path not in folder.parents
    (folder / "report.json").write_text("{}")
    discard_temporary(folder)
    assert not folder.exists()
    folder, _ = failures_folder(run, Communicator())
    del run
    gc.collect()
    assert not folder.exists()


def test_discard_temporary__leaves_other_folders_alone(tmp_path):
    discard_temporary(tmp_path)
    discard_temporary(None)
    assert tmp_path.is_dir()


def test_safe_name__fits_a_file_name_in_bytes():
    assert len(safe_name("\U0001d54f" * 80).encode()) <= 200


# -- one run at a time ---------------------------------------------------------------------------------------


def claimed(run, state):
    return claim_run_folder(run, Communicator(), state)


def never(source, target):
    raise AssertionError("nothing to copy")


def test_claim__another_run_gets_a_folder_of_its_own_and_keeps_it(tmp_path):
    one, two = (trainer(tmp_path, logger=CSVLogger(tmp_path, name="", version="v")) for _ in range(2))
    state = RunState()
    folder = claimed(one, RunState())
    assert claimed(one, RunState()) == folder == tmp_path / "v" / "failures"
    with pytest.warns(UserWarning, match=r"Another run is writing to .*failures\. This run writes to .*failures_2"):
        own = claimed(two, state)
    assert (own.name, state.own_folder) == ("failures_2", "failures_2")
    (own / "file").touch()
    leave_folder(two, own)
    leave_folder(one, folder)
    assert claimed(two, RunState.from_dict(state.to_dict())) == own  # a resumed run, with the other folder free
    leave_folder(two, own)
    elsewhere = trainer(tmp_path, logger=CSVLogger(tmp_path, name="", version="w"))
    assert claimed(elsewhere, state) == tmp_path / "w" / "failures"
    leave_folder(elsewhere, None)


def test_claim__runs_without_a_version_keep_their_own_id(tmp_path):
    one, two = trainer(tmp_path), trainer(tmp_path)
    first = RunState()
    folder = claimed(one, first)
    second = RunState.from_dict(first.to_dict())
    with pytest.warns(UserWarning, match="Another run is writing"):
        own = claimed(two, second)
    assert own.name == second.run_id == f"{first.run_id}_2"
    (own / "file").touch()
    leave_folder(two, own)
    assert claimed(two, RunState.from_dict(second.to_dict())) == own
    leave_folder(two, own)
    leave_folder(one, folder)


def test_claim__copies_the_analyses_up_to_the_step_of_a_resumed_run(tmp_path):
    one, two = (trainer(tmp_path, logger=CSVLogger(tmp_path, name="", version="v")) for _ in range(2))
    folder = claimed(one, RunState())
    for name in ("epoch=0000-step=000000", "epoch=0001-step=000006", "dataloader_1/epoch=0000-step=000000", "odd"):
        (folder / name).mkdir(parents=True)
        (folder / name / "report.json").write_text(name)
    (folder / "features.yaml").write_text("names")
    with pytest.warns(UserWarning, match="Another run is writing"):
        own = claimed(two, RunState(run_id="v", analyses=1))
    found = sorted(str(path.relative_to(own)) for path in own.rglob("*") if path.is_file() and path.name[0] != ".")
    ending = "epoch=0000-step=000000/report.json"
    assert found == [f"dataloader_1/{ending}", ending, "features.yaml"]
    leave_folder(two, own)
    leave_folder(one, folder)


def test_claim__the_folder_of_the_interventions(tmp_path):
    one, two = (trainer(tmp_path, logger=CSVLogger(tmp_path, name="", version=name)) for name in "vw")
    former, folder, ranks = claimed(one, RunState()), claimed(two, RunState()), Communicator()
    assert claim_former_folder(folder, folder, two, ranks, copy=never) == folder
    assert claim_former_folder(tmp_path / "gone", folder, two, ranks, copy=never) == folder
    copied = []
    for expected in (folder, folder.with_name("failures_interventions")):
        with pytest.warns(UserWarning, match="They are copied to"):
            own = claim_former_folder(former, folder, two, ranks, copy=lambda *paths: copied.append(paths))
        assert own == expected
        (folder / "interventions").mkdir(exist_ok=True)
    assert copied == [(former, folder), (former, folder.with_name("failures_interventions"))]
    (former / "file").touch()
    leave_folder(one, former)
    assert claim_former_folder(former, folder, two, ranks, copy=never) == former
    leave_folder(two, folder)
