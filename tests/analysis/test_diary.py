"""The failure diary on planted modes: matching, birth, growth, cure and return."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.analysis.diary import IN_A_ROW, MAX_MODES, Diary, advance, with_modes
from lightning_failures.core.budget import SKIPPED_FOR_TIME
from lightning_failures.core.text import fit_failed
from lightning_failures.data.grades import Grades
from lightning_failures.data.held_out import HeldOutParts, HeldOutSplit
from lightning_failures.data.report import FailureReport
from lightning_failures.directions.matching import CHANGE_LEVEL
from lightning_failures.stats.intervals import sign_test
from tests.helpers.planted import SIZE, PlantedMode, planted_result
from tests.helpers.results import analysed

SOME = range(30)


def nine(epoch: int, *modes: PlantedMode, fails=SOME, **options) -> FailureReport:
    return planted_result(epoch, ("nine", fails, modes), **options)


def follow(*reports: FailureReport, diary: Diary | None = None):
    """Return the final diary, and (name, status) of each mode at each analysis."""
    diary, rows = diary or Diary(), []
    for report in reports:
        diary, modes = advance(diary, report)
        rows.append([(mode.name, mode.status) for mode in modes])
    return diary, rows


def statuses(rows) -> list[str]:
    """Return the statuses of a diary with one mode at a time."""
    return [status for row in rows for _, status in row]


RED, THICK = PlantedMode(0, SOME), PlantedMode(1, range(20, 50))


# -- born and cured --------------------------------------------------------------------------------------------


def test_advance__a_mode_is_born_when_seen_three_times_in_a_row():
    diary, rows = follow(*(nine(epoch, RED) for epoch in range(4, 8)))
    assert rows == [[("nine 1", status)] for status in ("new", "new", "persisting", "persisting")]
    (mode,) = diary.modes
    assert (mode.since, mode.seen, mode.last) == (4, 4, 4)


def test_advance__the_threshold_of_a_mode_is_that_of_its_last_detection():
    first = nine(0, RED)
    directions = replace(first.directions, bias=torch.tensor([0.5]), weight=2 * first.directions.weight)
    diary, _ = advance(Diary(), replace(first, directions=directions))
    assert diary.modes[0].threshold == pytest.approx(-0.5 / float(directions.weight.norm()))
    diary, _ = follow(nine(1, RED), nine(2), diary=diary)
    assert diary.modes[0].threshold == pytest.approx(-float(first.directions.bias) / 1.0, abs=1e-6)


def test_advance__a_gap_before_birth_resets_the_streak():
    seen = (True, True, False, True, True, True)
    _, rows = follow(*(nine(epoch, *([RED] if see else [])) for epoch, see in enumerate(seen)))
    assert statuses(rows) == ["new", "new", "missing", "new", "new", "persisting"]


def test_advance__a_mode_is_cured_when_not_seen_three_times_in_a_row():
    reports = [nine(epoch, RED) for epoch in range(3)] + [nine(epoch, fails=range(3)) for epoch in range(3, 8)]
    diary, rows = follow(*reports)
    assert rows[3:] == [[("nine 1", "missing")], [("nine 1", "missing")], [("nine 1", "cured")], [], []]
    assert diary.modes[0].cured
    _, modes = advance(follow(*reports[:5])[0], reports[5])
    assert (modes[0].missed, modes[0].size, modes[0].gained, modes[0].since, modes[0].left) == (3, 0, None, 0, 3)


def test_advance__left_failures_are_counted_among_shared_examples():
    diary, _ = follow(*(nine(epoch, RED) for epoch in range(3)))
    _, (mode,) = advance(diary, nine(3, fails=range(20, 60), ids=range(25, 85)))
    assert (mode.status, mode.left) == ("missing", 5)
    _, (mode,) = advance(diary, nine(3, fails=(), ids=range(40, 100)))
    assert (mode.status, mode.left) == ("missing", None)
    _, (mode,) = advance(diary, replace(nine(3), directions=None))
    assert (mode.status, mode.left, mode.missed) == ("missing", None, 0)


def test_advance__a_gap_of_two_does_not_cure():
    seen = (True, True, True, False, False, True, False, False, True)
    _, rows = follow(*(nine(epoch, *([RED] if see else [])) for epoch, see in enumerate(seen)))
    assert statuses(rows)[3:] == ["missing", "missing", "persisting", "missing", "missing", "persisting"]


def test_advance__an_unborn_mode_is_dropped_and_its_name_is_not_reused():
    diary, rows = follow(nine(0, RED), *(nine(epoch) for epoch in range(1, 4)), nine(4, RED))
    assert rows == [[("nine 1", "new")], *[[("nine 1", "missing")]] * 3, [("nine 2", "new")]]
    assert [mode.name for mode in diary.modes] == ["nine 2"]


def test_advance__a_cured_mode_that_comes_back_keeps_its_name():
    see = [RED] * 3, [None] * 4, [THICK] * 3, [RED] * 3
    modes = list(itertools.chain(*see))
    diary, rows = follow(*(nine(epoch, *([] if mode is None else [mode])) for epoch, mode in enumerate(modes)))
    back = [dict(row)["nine 1"] for row in rows[10:]]
    assert back == ["returned", "returned", "persisting"]
    assert diary.modes[0].since == 0
    assert {name for row in rows for name, _ in row} == {"nine 1", "nine 2"}


def test_advance__a_mode_that_returns_briefly_is_cured_again():
    modes = [RED] * 3 + [None] * 3 + [RED] + [None] * 3
    _, rows = follow(*(nine(epoch, *([] if mode is None else [mode])) for epoch, mode in enumerate(modes)))
    assert statuses(rows)[3:] == ["missing", "missing", "cured", "returned", "missing", "missing", "cured"]


@pytest.mark.parametrize("reason", [SKIPPED_FOR_TIME, fit_failed(ArithmeticError("planted"))])
def test_advance__a_class_that_was_not_analysed_is_not_a_miss(reason):
    reports = [nine(epoch, RED) for epoch in range(3)]
    reports += [nine(epoch, skipped=reason) for epoch in range(3, 8)]
    _, rows = follow(*reports)
    assert statuses(rows)[3:] == ["missing"] * 5
    unseen = [nine(epoch) for epoch in range(3, 8)]
    unseen = [replace(report, directions=replace(report.directions, skipped={})) for report in unseen]
    assert statuses(follow(*reports[:3], *unseen)[1])[3:] == ["missing"] * 5
    blank = [analysed(0, None, (), epoch=epoch) for epoch in range(3, 8)]
    diary, rows = follow(*reports[:3], *blank, nine(8, RED))
    assert rows[3:] == [[]] * 5 + [[("nine 1", "persisting")]]
    assert diary.analyses == 9


def test_advance__half_as_many_examples_are_needed_for_a_miss():
    born = [nine(epoch, RED) for epoch in range(3)]
    few = [nine(epoch, ids=range(49)) for epoch in range(3, 8)]
    enough = [nine(epoch, ids=range(50)) for epoch in range(3, 6)]
    assert statuses(follow(*born, *few)[1])[-1] == "missing"
    assert statuses(follow(*born, *enough)[1])[-1] == "cured"


# -- matching --------------------------------------------------------------------------------------------------


def test_advance__another_direction_is_another_mode():
    _, rows = follow(*(nine(epoch, RED) for epoch in range(3)), nine(3, THICK))
    assert rows[3] == [("nine 1", "missing"), ("nine 2", "new")]


def test_advance__the_opposite_direction_with_the_same_members_is_another_mode():
    _, rows = follow(nine(0, RED), nine(1, PlantedMode([-1], SOME)))
    assert rows[1] == [("nine 1", "missing"), ("nine 2", "new")]


def test_advance__a_rotated_direction_with_other_members_is_another_mode():
    turned = [0.3, 0.954]
    same = PlantedMode(turned, SOME)
    other = PlantedMode(turned, range(50, 80))
    assert follow(nine(0, RED), nine(1, same))[1][1] == [("nine 1", "new")]
    assert follow(nine(0, RED), nine(1, other, fails=range(90)))[1][1][1] == ("nine 2", "new")


def test_advance__modes_that_change_places_keep_their_names():
    both = [(RED, THICK), (RED, THICK), (THICK, RED), (RED, THICK), (THICK, RED)]
    diary, rows = follow(*(nine(epoch, *modes, fails=range(50)) for epoch, modes in enumerate(both)))
    assert rows == [[("nine 1", status), ("nine 2", status)] for status in ["new"] * 2 + ["persisting"] * 3]
    assert [int(np.argmin(mode.direction)) for mode in diary.modes] == [0, 1]
    assert [mode.snapshot.size for mode in diary.modes] == [30, 30]


def test_advance__new_modes_are_numbered_by_their_size():
    small = PlantedMode(1, range(40, 50))
    diary, rows = follow(nine(0, small, RED, fails=range(50)), nine(1, small, RED, fails=range(50)))
    assert rows[0] == [("nine 1", "new"), ("nine 2", "new")]
    assert [(mode.name, mode.snapshot.size) for mode in diary.modes] == [("nine 1", 30), ("nine 2", 10)]


def test_advance__modes_of_different_classes_are_not_matched():
    _, rows = follow(
        planted_result(0, ("nine", SOME, [RED]), ("two", SOME, [])),
        planted_result(1, ("nine", SOME, []), ("two", SOME, [RED])),
    )
    assert rows == [[("nine 1", "new")], [("nine 1", "missing"), ("two 1", "new")]]


def test_advance__names_differ_even_if_class_names_are_equal():
    _, rows = follow(planted_result(0, ("cat", SOME, [RED]), ("cat", SOME, [RED]), ("cat 1", SOME, [RED])))
    assert [name for name, _ in rows[0]] == ["cat 1", "cat 2", "cat 1 1"]


def test_advance__the_caption_belongs_to_the_first_direction_and_stays():
    diary, modes = advance(Diary(), nine(0, RED, THICK, captions=True))
    assert [mode.caption for mode in modes] == ["a photo of a hard nine 0", None]
    diary, modes = advance(diary, nine(1, THICK, RED, captions=True))
    assert [mode.caption for mode in modes] == ["a photo of a hard nine 0", "a photo of a hard nine 1"]
    _, modes = advance(diary, nine(2))
    assert modes[1].caption == "a photo of a hard nine 1"


def test_advance__only_shared_examples_are_compared():
    first = nine(0, PlantedMode(0, range(30)), ids=range(60), fails=range(100))
    second = nine(1, PlantedMode(0, range(20, 100)), ids=range(20, 100), fails=range(100))
    diary, _ = advance(Diary(), first)
    _, (mode,) = advance(diary, second)
    assert (mode.shared, mode.size, mode.gained, mode.lost) == (1.0, 80, 30, 0)  # of 20 ... 59
    _, (mode,) = advance(diary, nine(1, PlantedMode(0, range(60, 90)), ids=range(60, 100), fails=range(100)))
    assert (mode.name, mode.shared, mode.gained, mode.lost, mode.cosine) == ("nine 1", None, 0, 0, 1.0)


def test_advance__another_encoder_restarts_with_new_names():
    diary, _ = follow(*(nine(epoch, RED) for epoch in range(3)))
    diary, rows = follow(*(nine(epoch, RED, encoder_fingerprint="other") for epoch in (3, 4)), diary=diary)
    assert rows == [[("nine 2", "new")], [("nine 2", "new")]]


def test_advance__additional_directions_of_a_discovery_part():
    """They have values only for the examples that they were fitted on."""
    report = nine(0, RED, THICK, fails=range(50))
    held = torch.arange(SIZE) % 2 == 1
    table, directions = report.table, report.directions
    (second,) = directions.further
    part = HeldOutSplit(
        Grades(*(getattr(table, f)[held] for f in ("ids", "labels", "predictions", "confidence")), table.class_names),
        table.values[held],
    )
    none = HeldOutSplit(
        Grades(
            *(values[:0] for values in vars(part.grades).values() if isinstance(values, torch.Tensor)),
            table.class_names,
        ),
        table.values[:0],
    )
    second = replace(second, out_of_fold=second.out_of_fold[~held])
    split = replace(report, directions=replace(directions, further=(second,)), parts=HeldOutParts(part, none))
    _, modes = advance(Diary(), split)
    assert [(mode.name, mode.size, mode.examples) for mode in modes] == [("nine 1", 30, 100), ("nine 2", 15, 50)]
    for mode in modes:  # some of the other examples fail too
        assert 0 < mode.gain <= mode.size


def test_advance__does_not_change_its_arguments():
    diary, _ = follow(*(nine(epoch, RED) for epoch in range(2)))
    one, two = advance(diary, nine(2, RED, THICK)), advance(diary, nine(2, RED, THICK))
    assert one[1] == two[1]
    assert (len(diary.modes), diary.numbers, diary.analyses) == (1, {"nine": 1}, 2)


# -- growing and shrinking -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "status"), [(20, 30, "growing"), (30, 20, "shrinking"), (20, 25, "persisting")]
)
def test_advance__growing_and_shrinking_of_the_flagged_slice(then, now, status):
    flagged = PlantedMode(0, range(40))
    reports = [nine(epoch, flagged, fails=range(then)) for epoch in range(3)] + [nine(3, flagged, fails=range(now))]
    diary, rows = follow(*reports)
    assert statuses(rows)[-1] == status
    _, (mode,) = advance(follow(*reports[:3])[0], reports[3])
    assert (mode.size, mode.gained, mode.lost) == (now, max(now - then, 0), max(then - now, 0))
    later = [nine(epoch, flagged, fails=range(now)) for epoch in range(4, 6)]
    assert statuses(follow(*later, diary=diary)[1]) == ["persisting"] * 2  # a change is reported once


def test_advance__slow_growth_adds_up_until_it_is_reported():
    reports = [nine(epoch, PlantedMode(0, range(60)), fails=range(20 + epoch)) for epoch in range(14)]
    assert statuses(follow(*reports)[1]) == ["new"] * 2 + (["persisting"] * 4 + ["growing"] + ["persisting"]) * 2
    assert sign_test(6, 0) <= CHANGE_LEVEL < sign_test(5, 0)


def test_advance__a_reversal_is_reported_at_once():
    fails = [50, 50, 50, 30, 20, 45]
    reports = [nine(epoch, PlantedMode(0, range(60)), fails=range(count)) for epoch, count in enumerate(fails)]
    assert statuses(follow(*reports)[1]) == ["new", "new", "persisting", "shrinking", "shrinking", "growing"]


def test_advance__flagging_more_examples_is_not_growth():
    wide, narrow = PlantedMode(0, range(90)), PlantedMode(0, range(20))
    reports = [nine(epoch, narrow, fails=range(60)) for epoch in range(3)] + [nine(3, wide, fails=range(60))]
    _, (mode,) = advance(follow(*reports[:3])[0], reports[3])
    assert (mode.status, mode.size, mode.gained) == ("persisting", 60, 40)


# -- properties ------------------------------------------------------------------------------------------------


MODES = {axis: PlantedMode(axis, range(15 * axis, 15 * axis + 30)) for axis in range(4)}
ANALYSES = st.lists(st.tuples(st.permutations(range(4)), st.integers(0, 3), st.booleans()), min_size=1, max_size=15)


@settings(max_examples=25, deadline=None)
@given(ANALYSES)
def test_advance__names_follow_planted_modes_in_any_order_of_analyses(analyses):
    diary, axis_of, cured = Diary(), {}, set()
    for epoch, (order, count, analysed_class) in enumerate(analyses):
        planted = [MODES[axis] for axis in order[:count]] if analysed_class else []
        report = nine(epoch, *planted, fails=range(80), skipped=None if analysed_class else SKIPPED_FOR_TIME)
        diary, modes = advance(diary, report)
        names = [mode.name for mode in modes]
        assert len(set(names)) == len(names)
        seen = {mode.name: mode for mode in diary.modes if mode.last == diary.analyses}
        assert len(seen) == len(planted)
        for name, mode in seen.items():  # one name per mode, forever
            assert axis_of.setdefault(name, int(np.argmin(mode.direction))) == int(np.argmin(mode.direction))
        for mode in modes:
            assert (mode.status in ("missing", "cured")) == (mode.name not in seen)
            assert mode.size == (seen[mode.name].snapshot.size if mode.name in seen else 0) <= mode.examples == SIZE
            assert mode.missed <= IN_A_ROW
            assert (mode.status == "cured") <= (mode.seen >= IN_A_ROW)
            assert (mode.status == "returned") <= (mode.name in cured)
            cured |= {mode.name} if mode.status == "cured" else set()
        assert len(diary.modes) <= MAX_MODES
        whole = report.with_report(modes=modes)
        assert FailureReport.from_json(whole.to_json()).modes == modes


def test_advance__keeps_a_maximum_number_of_modes_per_class():
    """The mode that was cured first is dropped first: if it returns, it gets a new name."""
    diary, axes = Diary(), range(MAX_MODES + 4)
    for epoch, axis in enumerate(np.repeat(axes, 2 * IN_A_ROW)):
        planted = [PlantedMode(int(axis), SOME)] if epoch % (2 * IN_A_ROW) < IN_A_ROW else []
        diary, _ = advance(diary, nine(epoch, *planted))
        assert len(diary.modes) <= MAX_MODES
    assert [mode.name for mode in diary.modes] == [f"nine {axis + 1}" for axis in axes[-MAX_MODES:]]
    assert follow(nine(200, PlantedMode(0, SOME)), diary=diary)[1] == [[(f"nine {MAX_MODES + 5}", "new")]]
    assert follow(nine(200, PlantedMode(4, SOME)), diary=diary)[1] == [[("nine 5", "returned")]]


@pytest.mark.slow
def test_benchmark__modes_keep_their_names_when_their_frequencies_change(monkeypatch):
    """With fitted directions instead of planted ones."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")  # scripts
    from benchmarks.diary import change_of_order, followed

    rng = np.random.default_rng(1)
    found = change_of_order(rng, trials=2)
    assert found["sightings"] >= 16
    assert found["kept"] >= 0.9 * found["sightings"]
    reports = followed(rng, np.linspace(0.9, 0.4, 8))
    assert {mode.name for mode in reports} == {"cat 1"}
    assert "shrinking" in [mode.status for mode in reports]


# -- other images under the same ids -----------------------------------------------------------------------------


def look(epoch: int, images, fails, flags):
    """An analysis of some images under the ids 0, 1, ...: image i fails if it is in ``fails``."""
    images = list(images)
    failing = [place for place, image in enumerate(images) if image in fails]
    flagged = [place for place, image in enumerate(images) if image in flags]
    result = planted_result(
        epoch, ("nine", failing, [PlantedMode(0, flagged)]), ("two", (), ()), ids=range(len(images))
    )
    digests = torch.tensor([*images, *(image + 10**6 for image in images)])
    return replace(result, table=replace(result.table, digests=digests))


def test_advance__other_images_under_the_same_ids_change_nothing():
    """Each analysis holds another hundred of two hundred images, and of those fewer and fewer fail."""
    fails = range(60)
    diary, statuses = Diary(), []
    for epoch in range(6):
        images = np.random.default_rng(epoch).permutation(np.r_[10 * epoch : 100 + 10 * epoch]).tolist()
        diary, (mode, *_) = advance(diary, look(epoch, images, fails, fails))
        statuses.append(mode.status)
        assert mode.unmatched == (10 if epoch else None)
        assert (mode.gained, mode.lost) == ((0, 0) if epoch else (None, None))
    assert statuses == ["new", "new", "persisting", "persisting", "persisting", "persisting"]


def test_advance__a_change_on_the_images_that_are_still_there_is_found():
    diary, mode = Diary(), None
    for epoch in range(4):
        fails = range(60) if epoch < 3 else range(20)
        diary, (mode, *_) = advance(diary, look(epoch, range(5 * epoch, 100 + 5 * epoch), fails, range(60)))
    assert (mode.status, mode.unmatched) == ("shrinking", 5)


def test_advance__an_analysis_of_other_images_has_not_missed_a_mode():
    diary = Diary()
    for epoch in range(3):
        diary, _ = advance(diary, look(epoch, range(100), range(60), range(60)))
    for epoch in range(3, 8):
        nothing = planted_result(epoch, ("nine", range(60), []), ("two", (), ()), skipped="no pattern")
        other = replace(nothing, table=replace(nothing.table, digests=torch.arange(200) + 500))
        diary, (mode,) = advance(diary, other)
        assert (mode.status, mode.missed, mode.unmatched) == ("missing", 0, 100)


def test_with_modes__says_how_many_were_not_found():
    diary, _ = advance(Diary(), look(0, range(100), range(60), range(60)))
    result = look(1, range(30, 130), range(60), range(60))
    _, modes = advance(diary, result)
    (note,) = with_modes(result, modes).notes
    assert note.startswith("30 examples of the failure diary (nine) are not in this analysis")
    same = look(1, range(100), range(60), range(60))
    assert with_modes(same, advance(diary, same)[1]).notes == ()
