"""Failure modes of two runs, matched by directions and by members."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_failures.directions import FailureDirections
from lightning_failures.directions.result import without_effects
from lightning_failures.report.comparison import compare
from lightning_failures.report.run_folder import Run
from tests.report.runs import run


def directions(*rows, mean: float = 0.0) -> FailureDirections:
    """Of the first classes, with these weights."""
    weight = torch.tensor(rows, dtype=torch.float32)
    k, d = weight.shape
    return FailureDirections(
        torch.arange(k),
        weight,
        *torch.zeros(5, k).unbind(),
        torch.full((d,), mean),
        torch.ones(d),
        torch.zeros(4),
        **without_effects(k, 4),
    )


IDS = [*range(20)]


FAILED = [1] * 10 + [0] * 10


def with_mode(flagged, **options) -> Run:
    """Twenty cats, of which ten fail; the given ones are flagged."""
    values = [-1.0 if i in flagged else 1.0 for i in IDS]
    return run(IDS, [0] * 20, FAILED, values, **({"modes": {"cat"}} | options))


def test_modes__matched_by_directions():
    same, other = directions([1.0, 0.1]), directions([-0.1, 1.0])
    known = {"encoder_fingerprint": "f"}
    a = with_mode({0, 1, 2, 15}, directions=directions([1.0, 0.0]), **known)
    (mode,) = compare(a, with_mode({0, 1, 2, 3}, directions=same, **known)).modes
    assert (mode.fate, mode.matched_by, mode.size_a, mode.size_b, mode.shared) == (
        "persistent",
        "directions",
        3,
        4,
        1.0,
    )
    assert mode.cosine == pytest.approx(1 / 1.01**0.5)
    assert (mode.caption_a, mode.cv_score_b) == ("a red cat", 0.9)
    gone, new = compare(a, with_mode({0, 1, 2}, directions=other, **known)).modes  # though its members are the same
    assert [(m.fate, m.size_a, m.size_b) for m in (gone, new)] == [("gone", 3, None), ("new", None, 3)]


@pytest.mark.parametrize("change", [{"encoder_fingerprint": "g"}, {"directions": directions([1.0, 0.0], mean=0.5)}])
def test_modes__matched_by_members_where_directions_lie_in_other_spaces(change):
    known = {"encoder_fingerprint": "f", "directions": directions([1.0, 0.0])}
    a = with_mode({0, 1, 2, 3}, **known)
    (mode,) = compare(a, with_mode({2, 3, 4, 5}, **(known | change))).modes
    assert (mode.fate, mode.matched_by, mode.cosine, mode.shared) == ("persistent", "members", None, 0.5)
    fates = [mode.fate for mode in compare(a, with_mode({3, 4, 5, 6}, **(known | change))).modes]
    assert fates == ["gone", "new"]


def test_modes__of_one_run_alone():
    a, b = with_mode({0, 1}), with_mode({0, 1}, modes=set())
    (gone,), (new,) = compare(a, b).modes, compare(b, a).modes
    assert (gone.fate, gone.size_a, gone.size_b, gone.why) == ("gone", 2, None, "no pattern")
    assert (new.fate, new.size_a, new.size_b) == ("new", None, 2)


def test_modes__nothing_tells():
    (mode,) = compare(with_mode({0, 1}), with_mode({15})).modes  # no flagged failure
    assert (mode.fate, mode.matched_by) == ("unknown", None)
    (mode,) = compare(with_mode({0, 1}), with_mode({0, 1}, modes=None)).modes  # no directions were sought
    assert (mode.fate, mode.why) == ("unknown", "no directions were fitted")


def test_modes__too_few_failures_for_one_are_an_end():
    cured = run(IDS, [0] * 20, [1] * 3 + [0] * 17)
    skipped = replace(cured.report.classes[0], skipped="3 failures; at least 10 are needed")
    report = replace(cured.report, classes=(skipped, *cured.report.classes[1:]))
    (mode,) = compare(with_mode({0, 1}), replace(cured, report=report)).modes
    assert (mode.fate, mode.why) == ("gone", "3 failures; at least 10 are needed")
