"""Answers of an early epoch: kept once, through checkpoints, and used by weights and picks, in a real Trainer."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions import AddFiltered, Upweight
from lightning_failures.interventions.base import EarlyAnswers
from lightning_failures.steering.checkpoint import ControllerState
from lightning_failures.steering.early_answers import EarlyAnswersStore
from tests.end_to_end.test_interventions import DATA, Drawn, Numbered, fit, steered

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]

DRAWS = {"seed": 0, "epoch": 0, "plans": {}}
POOL = Numbered(300, 11)


class Turns(Drawn):
    """A model that errs on most dark images in epoch 0, and on most bright ones later."""

    def _guess(self, pixels):
        labels = (pixels[:, 0, 0, 0] * 10).round().long()
        hard = (pixels.mean((1, 2, 3)) < 0.45) == (self.current_epoch == 0)
        shade = pixels[:, 1, 3, 3] * 1000 % 1
        logits = 4.0 * F.one_hot((labels + (hard & (shade < 0.8)).long()) % 4, 4)
        return logits + shade[:, None] * (1 - F.one_hot(labels, 4))


def wrong_at_first(data) -> torch.Tensor:
    """Return which examples the model of epoch 0 gets wrong, computed by hand."""
    return data.dark & (data.images[:, 1, 3, 3] * 1000 % 1 < 0.8)


def early_upweight(**options) -> Upweight:
    """Return an Upweight that first acts in epoch 2, when the model errs on other images than in epoch 0."""
    return Upweight(
        **{"factor": 4.0, "max_flagged": 1.0, "triage": False, "flags": "early", "start_epoch": 2} | options
    )


def upweighted(failures) -> torch.Tensor:
    """Return the examples that the last decision gives more weight, (N,) bool."""
    plan = failures.state_dict()["steering"]["draws"]["plans"]["0 Upweight"][-1]
    return torch.zeros(plan["examples"], dtype=torch.bool).index_fill(0, plan["ids"], True)


def test_upweight__early_errors_weigh_more_and_a_resumed_run_knows_them(tmp_path):
    saves = ModelCheckpoint(tmp_path / "saves", save_top_k=-1, filename="{epoch}")
    whole = steered(early_upweight())
    module, _ = fit(tmp_path / "whole", whole, module=Turns(), epochs=3, callbacks=[saves], enable_checkpointing=True)
    assert torch.equal(upweighted(whole), wrong_at_first(DATA))
    (entry,) = whole.last_report["interventions"]
    assert entry["early_epoch"] == 0
    assert entry["options"]["flags"] == "early"
    assert entry["flagged"] == int(wrong_at_first(DATA).sum())
    assert float(DATA.dark[module.epochs[2]].float().mean()) > float(DATA.dark.float().mean()) + 0.2

    resumed = steered(early_upweight())
    checkpoint = tmp_path / "saves" / "epoch=0.ckpt"
    torch.load(checkpoint, weights_only=True)
    fit(tmp_path / "resumed", resumed, module=Turns(), epochs=3, ckpt_path=checkpoint)
    assert torch.equal(upweighted(resumed), wrong_at_first(DATA))
    assert resumed.last_report["interventions"][0]["early_epoch"] == 0

    late = steered(early_upweight())  # a run that had not asked for early answers asks at the next validation
    without = tmp_path / "without" / "epoch=0.ckpt"
    saves = ModelCheckpoint(without.parent, filename="{epoch}")
    fit(tmp_path / "plain", steered(Upweight()), module=Turns(), epochs=1, callbacks=[saves], enable_checkpointing=True)
    fit(tmp_path / "late", late, module=Turns(), epochs=3, ckpt_path=without)
    assert late.last_report["interventions"][0]["early_epoch"] == 1
    assert not (wrong_at_first(DATA) & upweighted(late)).any()
    assert upweighted(late).any()


def test_filtered__picks_are_the_least_confident_at_first(tmp_path):
    pick = {"per_class": 10, "similarity": 1.0, "triage": False, "start_epoch": 2}
    failures = steered(AddFiltered(POOL, by="early", **pick), AddFiltered(POOL, by="confidence", **pick))
    fit(tmp_path, failures, module=Turns(), epochs=3)
    early, late = (
        [row for c in one["classes"] for row in c["pool_ids"]] for one in failures.last_report["interventions"]
    )
    assert (len(early), len(late)) == (40, 40)
    assert wrong_at_first(POOL)[early].all()
    assert not POOL.dark[late].any()


def test_options__out_of_range():
    with pytest.raises(ConfigurationError, match=r"Upweight\(early_epoch=...\) must be .* before start_epoch=1, got 1"):
        Upweight(flags="early", early_epoch=1)
    with pytest.raises(ConfigurationError, match="AddFiltered"):
        AddFiltered(POOL, by="early", early_epoch=-1)
    with pytest.raises(ConfigurationError, match=r"flags=...\) must be one of directions, early"):
        Upweight(flags="late")
    assert Upweight(early_epoch=3).wants_early is None


def answers(size=3, epoch=0) -> EarlyAnswers:
    return EarlyAnswers(epoch, np.linspace(0, 1, size, dtype=np.float32), np.arange(size) < 1)


def test_store__one_pass_for_the_same_examples_and_none_twice():
    asked = []

    def ask(pool, view):
        asked.append(pool)
        return answers(3 if pool is None else len(pool), epoch=len(asked))

    pool = [("image", 0)] * 5
    wanted = {
        "0 Upweight": Upweight(flags="early", start_epoch=9, early_epoch=2),
        "1 Upweight": Upweight(flags="early", start_epoch=9, early_epoch=1),
        "2 AddFiltered": AddFiltered(pool, by="early"),
        "3 Upweight": Upweight(),
    }
    store = EarlyAnswersStore()
    for epoch in (0, 1, 2, 3):
        store.keep_due(wanted, epoch, ask, training_size=3)
    assert asked == [pool, None, None]
    assert store.of("3 Upweight") is None
    store.keep_due(wanted, 4, ask, training_size=7)  # a resumed run, whose training set has grown
    assert asked[3:] == [None]
    store.drop("2 AddFiltered")
    assert store.of("2 AddFiltered") is None


def test_state__through_a_checkpoint_under_another_name():
    store = EarlyAnswersStore()
    assert store.to_dict() == {}
    store.keep_due({"0 Upweight": Upweight(flags="early")}, 0, lambda pool, view: answers(), training_size=3)
    file = io.BytesIO()
    torch.save(store.to_dict(), file)
    file.seek(0)
    state = ControllerState(DRAWS, {}, {}, (), None, None, **torch.load(file, weights_only=True))
    loaded = EarlyAnswersStore()
    loaded.load(state.early, {"0 Upweight": "1 Upweight"})
    assert loaded.of("1 Upweight").wrong.tolist() == [True, False, False]
    loaded.load(state.early, {})
    assert loaded.to_dict() == {}


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"epoch": 0, "confidence": torch.ones(2), "wrong": torch.ones(3).bool()},
        {"confidence": torch.ones(2), "wrong": torch.ones(2).bool()},
    ],
)
def test_state__damaged(broken):
    with pytest.raises(DataError, match="early epoch"):
        ControllerState(DRAWS, {}, {}, (), None, None, early={"0 Upweight": broken})
