"""Interventions of a checkpoint and those of today, matched by what they are."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_failures.interventions import AddFiltered, Upweight
from lightning_failures.interventions.base import named_interventions
from lightning_failures.steering.identity import folders_of, match_interventions, plans_under, pool_digest
from tests.end_to_end.test_added import FROM_POOL, Pool, added, filtered
from tests.end_to_end.test_interventions import fit, steered

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

ONE, OTHER = Pool(200, seed=11), Pool(200, seed=12)  # of one type and one length


def entries(*interventions):
    return {
        name: {"kind": type(one).__name__, "options": one.options}
        | ({} if pool_digest(one) is None else {"pool_digest": pool_digest(one)})
        for name, one in named_interventions(interventions).items()
    }


def matched(saved, now) -> dict[str, str]:
    stored = entries(*saved)
    return match_interventions(stored, list(stored), named_interventions(now))


def test_match__whatever_the_order():
    a, b, c = Upweight(factor=2.0), Upweight(factor=3.0), AddFiltered(ONE, 5)
    assert matched([a, b], [b, a]) == {"0 Upweight": "1 Upweight", "1 Upweight": "0 Upweight"}
    assert matched([a, c], [c, a]) == {"0 Upweight": "1 Upweight", "1 AddFiltered": "0 AddFiltered"}
    assert matched([a, b], [b]) == {"1 Upweight": "0 Upweight"}
    assert matched([b], [a, b]) == {"0 Upweight": "1 Upweight"}
    assert matched([a, a], [a, a]) == {"0 Upweight": "0 Upweight", "1 Upweight": "1 Upweight"}


def test_match__options_that_were_changed_keep_their_place():
    assert matched([Upweight(factor=2.0)], [Upweight(factor=4.0)]) == {"0 Upweight": "0 Upweight"}
    assert matched([Upweight(factor=2.0)], [AddFiltered(ONE, 5)]) == {}
    former = {"0 Upweight": {"kind": "Upweight", "options": {"factor": 2.0}}}  # of a version with fewer options
    now = named_interventions([Upweight(factor=3.0), Upweight(factor=2.0)])
    assert match_interventions(former, ["0 Upweight"], now) == {"0 Upweight": "1 Upweight"}


def test_match__pools_of_one_type_and_length_by_their_content():
    assert AddFiltered(ONE, 5).options == AddFiltered(OTHER, 5).options
    swapped = matched([AddFiltered(ONE, 5), AddFiltered(OTHER, 5)], [AddFiltered(OTHER, 5), AddFiltered(ONE, 5)])
    assert swapped == {"0 AddFiltered": "1 AddFiltered", "1 AddFiltered": "0 AddFiltered"}


def test_pool_digest__only_of_pools_that_read_alike_each_time():
    class Broken(list):
        def __getitem__(self, index):
            raise OSError("planted")

    class Random(Pool):
        def __getitem__(self, index):
            image, *rest = super().__getitem__(index)
            return image + torch.rand(()), *rest

    class Restless(Pool):
        reads = 0

        def __getitem__(self, index):
            self.reads += 1
            return self.reads, 0

    state = torch.get_rng_state()
    assert pool_digest(AddFiltered(Random(), 5)) == pool_digest(AddFiltered(Random(), 5)) is not None
    assert pool_digest(AddFiltered(Restless(), 5)) is pool_digest(AddFiltered(Broken([1]), 5)) is None
    assert pool_digest(Upweight()) is None
    assert pool_digest(AddFiltered([{"x": "a", "y": 1}], 5)) != pool_digest(AddFiltered([{"x": "b", "y": 1}], 5))
    assert torch.equal(torch.get_rng_state(), state)


def test_plans__get_the_number_of_their_source():
    plans = {"1 AddFiltered": [{"since": 2, "added": torch.tensor([(2 << 40) + 7])}, {"since": 3, "added": None}]}
    renamed = plans_under(plans, {"1 AddFiltered": "0 AddFiltered"}, ["0 AddFiltered"])
    assert renamed["0 AddFiltered"][0]["added"].tolist() == [(1 << 40) + 7]
    assert renamed["0 AddFiltered"][1]["added"] is None
    assert plans_under(plans, {}, []) == {}


def test_folders__stay_with_their_intervention():
    names = {"0 A": "1 A", "1 A": "0 A"}
    swapped = folders_of({}, names, ["0 A", "1 A"])
    assert swapped == {"1 A": "0 A", "0 A": "1 A"}
    assert folders_of(swapped, names, ["0 A", "1 A"]) == {}  # and back
    assert folders_of({}, {"0 A": "1 A"}, ["0 A", "1 A"]) == {"1 A": "0 A", "0 A": "0 A 2"}  # a new one in front
    assert folders_of({}, {"0 A": "0 A"}, ["0 A", "1 A"]) == {}


def test_resume__two_that_swap_places_keep_their_picks(tmp_path):
    """Each adds its own images in the epoch after the resume, as in a run in which they stay."""
    saves = ModelCheckpoint(tmp_path / "saved", save_last=True)
    once = {"every_n_epochs": 9, "triage": False}
    one, other = filtered(ONE, **once), filtered(OTHER, 20, **once)
    fit(tmp_path, steered(one, other), epochs=2, callbacks=[saves], enable_checkpointing=True)
    epochs = []
    for number, interventions in enumerate(([one, other], [other, one])):
        more = {"callbacks": [ModelCheckpoint(tmp_path / f"more{number}")], "enable_checkpointing": True}
        failures, last = steered(*interventions), tmp_path / "saved" / "last.ckpt"
        module, _ = fit(tmp_path, failures, epochs=3, ckpt_path=last, **more)
        epochs.append(sorted(module.epochs[2]))
        assert all(entry["added"] for entry in failures.last_report["interventions"])
    assert epochs[0] == epochs[1]
    assert any(index >= FROM_POOL for index in epochs[0])
    assert added(epochs[0])
