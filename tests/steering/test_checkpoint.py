"""The state of the callback in checkpoints: plain, versioned, read with care."""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import AddFiltered, Upweight
from lightning_failures.steering.loader_patch import drop_stale_plans
from lightning_failures.trainer.schedule import RunState
from tests.end_to_end.test_added import POOL, filtered
from tests.end_to_end.test_interventions import DATA, Drawn, fit, steered

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

RUN = {
    "version": 1,
    "run_id": "1f3a0c2e",
    "validations": 2,
    "analyses": 2,
    "analysis_age": 0,
    "last_epoch": 1,
    "last_values": {"cv_score_mean": 0.75},
    "id": "0123456789ab",
}


def entry(kind: str, **options: Any) -> dict[str, Any]:
    """The keys of the first version; later ones are optional."""
    return {
        "kind": kind,
        "options": options,
        "epoch": 2,
        "began": 1,
        "changes_training": True,
        "flagged": 3,
        "classes": [{"class": "class 0", "flagged": 3, "reason": None}],
    }


FIRST: dict[str, Any] = {
    "draws": {
        "seed": 0,
        "epoch": 2,
        "plans": {
            "0 Upweight": [
                {
                    "since": 2,
                    "until": None,
                    "grow": False,
                    "examples": len(DATA),
                    "ids": torch.tensor([4, 8, 15]),
                    "weights": torch.tensor([4.0, 4.0, 4.0], dtype=torch.float64),
                }
            ]
        },
    },
    "turns": {"0 Upweight": 1},
    "entries": {"0 Upweight": entry("Upweight", factor=4.0)},
    "trend": [{"epoch": 1, "report/accuracy": 0.5}],
    "slice": torch.tensor([1, 5, 9]),
    "slice_epoch": 0,
}
"""As the first version wrote it."""

FORMER: dict[str, Any] = copy.deepcopy(FIRST) | {
    "version": 1,
    "verdict": "not measured",
    "folder": "logs/version_0/failures",
    "rollback": {
        "before": {"ids": torch.tensor([2, 3]), "correct": torch.tensor([True, False])},
        "file": "logs/version_0/failures/before_interventions.pt",
        "undone": None,
        "pending": False,
    },
    "lottery": {"treated": {0: True, 2: False}, "before": [0.25, 0.5]},
}
FORMER["draws"]["plans"]["0 Upweight"][0] |= {"added": torch.empty(0, dtype=torch.int64), "of_loss": False}
FORMER["draws"]["plans"]["1 AddFiltered"] = [
    FORMER["draws"]["plans"]["0 Upweight"][0] | {"added": torch.tensor([(2 << 40) + 7])}
]
FORMER["turns"]["1 AddFiltered"] = 0
FORMER["entries"]["1 AddFiltered"] = entry("AddFiltered", pool="Pool of 300")
for told in FORMER["entries"].values():
    told |= {"added": 1, "review": [], "suspected": 0}

TODAY: dict[str, Any] = copy.deepcopy(FORMER) | {
    "slice_then": {
        "failed": torch.tensor([True, False, True]),
        "in_report": torch.tensor([True, True, False]),
        "digests": torch.tensor([11, 15, 19]),
    }
}
"""With the digests of images, by which examples are found again; before, ids had to do."""
for told in TODAY["entries"].values():
    told |= {"doubted": 0}
TODAY["rollback"]["before"]["digests"] = torch.tensor([12, 13])
TODAY["lottery"]["members"] = {
    "ids": torch.tensor([1, 5]),
    "labels": torch.tensor([0, 2]),
    "correct": torch.tensor([False, True]),
    "digests": torch.tensor([11, 15]),
}


def modes():
    """With all that keeps a state."""
    return steered(Upweight(factor=4.0), filtered(), auto_rollback=True, verdict="lottery")


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def keys(state: Any) -> Any:
    """The form of a state: the keys of all its levels that are not names of something."""
    if isinstance(state, list | tuple) and state and isinstance(state[0], dict):
        return keys(state[0])
    if not isinstance(state, dict):
        return None
    open_ended = {"plans", "turns", "entries", "last_values", "treated"}
    return {
        key: keys(next(iter(value.values()), None)) if key in open_ended and value else keys(value)
        for key, value in state.items()
        if key
        not in ("options", "classes", "trend", "rollback", "verdict", "members")  # members: of enough classes only
    }


@pytest.mark.slow
def test_checkpoint__is_plain_and_has_the_form_that_is_kept_here(tmp_path):
    saves = ModelCheckpoint(tmp_path / "checkpoints")
    fit(tmp_path, one := modes(), epochs=2, callbacks=[saves], enable_checkpointing=True)
    (path,) = (tmp_path / "checkpoints").iterdir()
    state = torch.load(path, weights_only=True)["callbacks"][one.state_key]
    steering = state.pop("steering")
    assert keys(steering) == keys(TODAY), "keep the former state in this file, and load it in a test"
    assert state.keys() >= RUN.keys()
    history = {"earlier", "since", "looks"}  # written once there is some
    assert steering["rollback"].keys() - history == TODAY["rollback"].keys()
    again = modes()
    again.load_state_dict(state | {"steering": steering})
    assert same(again.state_dict()["steering"], steering)


# -- other versions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steering", [FORMER, TODAY])
def test_state__of_today_comes_back_as_it_was(steering):
    one = modes()
    one.load_state_dict(RUN | {"steering": steering})
    state = one.state_dict()
    assert same(state.pop("steering"), steering)
    assert {key: state[key] for key in RUN} == RUN


def test_state__of_the_first_version():
    one = modes()
    one.load_state_dict({key: RUN[key] for key in ("version", "run_id")} | {"steering": FIRST})
    state = one.state_dict()
    assert (state["run_id"], state["analyses"]) == ("1f3a0c2e", 0)
    (plan,) = state["steering"]["draws"]["plans"]["0 Upweight"]
    assert same(
        {key: plan[key] for key in ("ids", "weights")},
        {"ids": torch.tensor([4, 8, 15]), "weights": torch.full((3,), 4.0).double()},
    )
    assert (plan["added"].tolist(), plan["of_loss"]) == ([], False)
    assert state["steering"]["verdict"] == "not measured"
    assert state["steering"]["trend"] == FIRST["trend"]


@pytest.mark.slow
def test_resume__with_a_state_of_the_first_version(tmp_path):
    """What it had decided is carried out and told, until something else is decided."""
    options = {"callbacks": [ModelCheckpoint(tmp_path / "checkpoints")], "enable_checkpointing": True}
    fit(tmp_path, one := steered(Upweight(factor=4.0, start_epoch=9)), epochs=2, **options)
    (path,) = (tmp_path / "checkpoints").iterdir()
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"][one.state_key]["steering"] = FIRST
    torch.save(checkpoint, path)
    again = steered(Upweight(factor=4.0, every_n_epochs=9))
    options["callbacks"] = [ModelCheckpoint(tmp_path / "again")]
    module, _ = fit(tmp_path, again, epochs=3, ckpt_path=path, **options)
    assert len(module.epochs[2]) == len(DATA)
    assert all(module.epochs[2].count(index) >= 3 for index in (4, 8, 15))
    (told,) = again.last_report["interventions"]
    assert told["flagged"] == 3
    assert [point["epoch"] for point in told["trend"]] == [1, 2]
    assert "3 flagged training examples" in next(tmp_path.glob("failures/*/*/epoch=0002*/report.md")).read_text()


def test_state__keys_of_later_versions_are_ignored():
    one = modes()
    later = copy.deepcopy(TODAY) | {"of a later version": 1}
    later["draws"]["of a later version"] = later["rollback"]["of a later version"] = 1
    later["draws"]["plans"]["0 Upweight"][0]["of a later version"] = 1
    one.load_state_dict(RUN | {"of a later version": 1, "steering": later})
    assert same(one.state_dict()["steering"], TODAY)


def test_state__of_a_later_version_is_refused_where_it_steers():
    with pytest.raises(ConfigurationError, match="its version is 2, and this package reads versions up to 1"):
        modes().load_state_dict(RUN | {"steering": TODAY | {"version": 2}})
    with pytest.warns(UserWarning, match=r"it has version 2.* are counted from zero"):
        assert RunState.from_dict(RUN | {"version": 2}) == RunState()


def test_state__of_interventions_that_are_gone_is_dropped():
    one = steered(Upweight(factor=4.0))
    one.load_state_dict(RUN | {"steering": TODAY})
    state = one.state_dict()["steering"]
    assert list(state["draws"]["plans"]) == list(state["turns"]) == list(state["entries"]) == ["0 Upweight"]
    none = steered(Upweight())
    none.load_state_dict(RUN)  # begun without any
    assert none.state_dict()["steering"]["draws"]["plans"] == {}


# -- damage --------------------------------------------------------------------------------------------------

JUNK = [None, -1, 10**6, 1.5, "?", [], {}, True, float("nan"), torch.tensor([1.5]), torch.tensor(3), [None], {"?": 1}]


def places(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a nested state."""
    inside = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    found = [path] if path else []
    for key, value in inside:
        found += places(value, (*path, key))
    return found


DAMAGES = [(place, junk) for place in places(TODAY) for junk in (*range(len(JUNK)), "remove")]


@pytest.mark.filterwarnings("ignore:.*had picked came from another pool")
@settings(max_examples=150, deadline=None)
@given(damage=st.sampled_from(DAMAGES))
def test_damage__is_an_error_of_ours_or_harms_nothing(damage):
    *path, last = damage[0]
    state = copy.deepcopy(TODAY)
    holder = state
    for key in path:
        holder = holder[key]
    if damage[1] == "remove":
        del holder[last]
    else:
        holder[last] = JUNK[damage[1]]
    one = modes()
    try:
        one.load_state_dict(RUN | {"steering": state})
    except ConfigurationError:
        return
    steering = one._steering
    drop_stale_plans(steering.schedule, list(steering.interventions), len(DATA), {2: POOL})  # as at the first batch
    for steering.schedule.epoch in range(4):
        steering.schedule.weights()
        steering.schedule.added()
    again = modes()
    again.load_state_dict(one.state_dict())
    assert steering.record.summary(None) is not None
    assert steering.record.began in (True, False)


@pytest.mark.parametrize("key", ["draws", "turns", "entries", "trend", "slice"])
def test_damage__what_is_needed_and_lacks_is_named(key):
    state = {name: value for name, value in TODAY.items() if name != key}
    with pytest.raises(ConfigurationError, match=f"ControllerState lacks '{key}'. Resume from another checkpoint"):
        modes().load_state_dict(RUN | {"steering": state})


@pytest.mark.parametrize("key", RUN)
@pytest.mark.parametrize("junk", ["?", [], None, 1.5])
def test_damage__of_the_counts_is_one_warning(key, junk):
    if key in ("run_id", "id") and junk in ("?", None):
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = RunState.from_dict(RUN | {key: junk})
    assert state == RunState()
    (warning,) = caught
    assert "cannot be read" in str(warning.message)


def test_damage__of_interventions_harms_nothing_where_there_are_none():
    one = steered(Upweight())
    one.interventions = one._steering.interventions = {}
    one.load_state_dict(RUN | {"steering": {"draws": 3}})
    assert one.state_dict()["run_id"] == RUN["run_id"]


# -- pools ---------------------------------------------------------------------------------------------------


def test_pool__another_one_makes_a_new_choice(tmp_path):
    def other(length):
        return AddFiltered([POOL[i] for i in range(length)], 10)

    one = steered(Upweight(factor=4.0), other(200))
    with pytest.warns(
        UserWarning, match=r"had picked came from another pool. They are dropped, and new ones will be picked"
    ):
        one.load_state_dict(RUN | {"steering": TODAY})
    state = one.state_dict()["steering"]
    assert "1 AddFiltered" not in {**state["draws"]["plans"], **state["turns"]}
    assert not state["entries"]["1 AddFiltered"]["changes_training"]
    assert state["turns"]["0 Upweight"] == 1


# -- folders -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_fast_dev_run__leaves_no_folder(tmp_path, monkeypatch, fails):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    seen = []

    class Looks(Drawn):
        def training_step(self, batch, batch_idx):
            seen.extend(temporary.iterdir())
            if fails:
                raise RuntimeError("planted")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="planted") if fails else contextlib.nullcontext():
        fit(tmp_path, steered(), module=Looks(), fast_dev_run=True)
    assert len(seen) == 1
    assert not list(temporary.iterdir())
