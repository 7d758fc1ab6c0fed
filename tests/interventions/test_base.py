"""What all interventions have in common: schedule, options, names."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import AddFiltered, AddSynthetic, Decision, Intervention, Upweight

SCHEDULE = ["start_epoch", "every_n_epochs", "stop_epoch", "dry_run", "grow_epoch"]
KINDS = [Upweight, lambda **schedule: AddFiltered([("image", 0)], **schedule), lambda **s: AddSynthetic("a/b", **s)]


class Own(Intervention):
    """An intervention of a user, with one option."""

    def __init__(self, strength: float = 1.0, **schedule) -> None:
        super().__init__(**schedule)
        self.strength = strength

    def decide(self, examples, round):
        return Decision(np.ones(len(examples.labels)), ())


class Derived(Own):
    """Adds an option to those of its base."""

    def __init__(self, extra: bool = False, **options) -> None:
        super().__init__(**options)
        self.extra = extra


@pytest.mark.parametrize("make", [*KINDS, Own, Derived])
def test_schedule__the_same_five_options_of_every_intervention(make):
    given = {"start_epoch": 2, "every_n_epochs": 3, "stop_epoch": 8, "dry_run": True, "grow_epoch": True}
    one = make(**given)
    assert list(one.options)[-5:] == SCHEDULE
    assert {name: one.options[name] for name in SCHEDULE} == given
    assert not one.changes_training
    assert [one.decision_index(epoch) for epoch in (1, 2, 5, 7, 8)] == [None, 0, 1, 1, None]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(("name", "value"), [("start_epoch", -1), ("every_n_epochs", None), ("stop_epoch", 1)])
def test_schedule__outside_its_range_is_refused(make, name, value):
    with pytest.raises(ConfigurationError, match=rf"\({name}=...\) must be .*got {value}"):
        make(**{name: value})


def test_schedule__a_misspelt_option_is_an_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'start_epok'"):
        Upweight(start_epok=2)


def test_options__of_reports_keep_names_and_order():
    own = ["factor", "max_factor", "max_flagged", "triage", "weight_key", "flags", "early_epoch"]
    assert list(Upweight().options) == [*own, *SCHEDULE]
    assert list(Derived(strength=2.0).options) == ["extra", "strength", *SCHEDULE]
    assert repr(Own(2.0)).startswith("Own(strength=2.0, start_epoch=1, ")


def test_stopped_at__leaves_the_original_unchanged():
    one = Upweight(start_epoch=1)
    stopped = one.stopped_at(3)
    assert (one.stop_epoch, stopped.stop_epoch) == (None, 3)
    assert stopped.decision_index(2) == 1
    assert stopped.decision_index(3) is None
