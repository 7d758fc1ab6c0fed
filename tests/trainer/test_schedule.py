"""The validations that are analysed, and the state that a resumed run continues from."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from lightning_failures.trainer.schedule import RunState, is_due


def trainer(
    epoch=0, *, last=True, fn="fit", sanity=False, batches=10, interval=5, batch=4, steps=-1, stop=False
) -> SimpleNamespace:
    """A Trainer at the start of a validation, after ``batch + 1`` of ``batches`` batches."""
    return SimpleNamespace(
        sanity_checking=sanity,
        state=SimpleNamespace(fn=fn),
        current_epoch=epoch,
        is_last_batch=last,
        num_training_batches=batches,
        val_check_batch=interval,
        fit_loop=SimpleNamespace(batch_idx=batch),
        max_steps=steps,
        global_step=epoch * batches + batch + 1,
        should_stop=stop,
        accumulate_grad_batches=1,
        lightning_module=SimpleNamespace(automatic_optimization=True),
    )


@pytest.mark.parametrize("options", [{"sanity": True}, {"fn": "validate"}, {"fn": "test"}])
def test_is_due__always_outside_of_training(options):
    assert is_due(trainer(3, last=False, **options), RunState(last_epoch=3), 5, None)


def test_is_due__every_n_epochs():
    state, analysed = RunState(), []
    for epoch in range(7):
        if is_due(trainer(epoch), state, 3, None):
            analysed.append(epoch)
            state.last_epoch = epoch
    assert analysed == [2, 5]


def test_is_due__an_epoch_that_was_missed_is_made_up_for():
    assert is_due(trainer(3), RunState(), 3, None)
    assert not is_due(trainer(4), RunState(last_epoch=3), 3, None)
    assert is_due(trainer(5), RunState(last_epoch=3), 3, None)


def test_is_due__every_n_validations():
    assert [is_due(trainer(), RunState(validations=count), 1, 3) for count in range(1, 7)] == [
        *(False, False, True),
        *(False, False, True),
    ]


def test_is_due__the_last_validation_of_an_epoch():
    assert not is_due(trainer(last=False, batch=3), RunState(), 1, None)
    assert is_due(trainer(last=False, batch=5), RunState(), 1, None)


@pytest.mark.parametrize("unknown", [{"interval": None}, {"batches": math.inf}])
def test_is_due__all_validations_of_an_epoch_whose_last_is_unknown(unknown):
    state = RunState()
    assert is_due(trainer(0, last=False, **unknown), state, 1, None)
    state.last_epoch = 0
    assert is_due(trainer(0, last=False, **unknown), state, 1, None)
    assert not is_due(trainer(1, last=False, **unknown), state, 3, None)


@pytest.mark.parametrize("every_n_validations", [None, 3])
def test_is_due__the_last_validation_before_the_training_stops(every_n_validations):
    state, common = RunState(validations=1), {"last": False, "interval": 2, "batch": 3}  # after 4 of 10 batches
    assert not is_due(trainer(**common), state, 1, every_n_validations)
    assert not is_due(trainer(**common, steps=6), state, 1, every_n_validations)  # one more, after step 6
    assert is_due(trainer(**common, steps=5), state, 1, every_n_validations)
    assert is_due(trainer(**common, steps=4), state, 1, every_n_validations)
    assert is_due(trainer(**common, stop=True), state, 1, every_n_validations)


def test_state__round_trip():
    state = RunState("run", validations=4, analyses=3, analysis_age=1, last_epoch=2, last_values={"cv_score": 0.5})
    assert RunState.from_dict(state.to_dict()) == state


@pytest.mark.parametrize("damage", [{"version": 99}, {"analyses": "three"}])
def test_state__that_cannot_be_read_is_a_warning(damage):
    with pytest.warns(UserWarning, match="cannot be read"):
        assert RunState.from_dict(RunState(analyses=3).to_dict() | damage) == RunState()
