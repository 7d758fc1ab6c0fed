"""Counterfactual checks: gaps and flips by hand, how often chance confirms, regions and their pasting."""

import numpy as np
import pytest
import torch

from lightning_failures.analysis.counterfactuals import (
    CONFIRMED,
    MIN_PAIRS,
    NOT_CONFIRMED,
    NOT_MEASURED,
    hottest_box,
    paste,
    pasted_flips,
    rendered_gap,
    resized,
)
from lightning_failures.data.report import ClassReport, FailureReport, FeatureReport
from lightning_failures.errors import DataError
from lightning_failures.stats.intervals import paired_difference_interval


def test_rendered_gap__by_hand():
    hard = [True] * 4 + [False] * 12
    reference = [True] * 4 + [True] * 10 + [False] * 2
    easy = [True] * 16
    found = rendered_gap(hard, torch.tensor(reference), np.array(easy), generator="drawing")
    assert (found.images, found.changed, found.control, found.reference) == (16, 12 / 16, 0.0, 2 / 16)
    assert found.difference == pytest.approx(12 / 16)
    assert found.interval == paired_difference_interval(0, 12, 0, 4)
    assert (found.kind, found.verdict, found.reason, found.generator) == ("rendered", CONFIRMED, None, "drawing")


def test_rendered_gap__without_an_easy_caption_the_reference_is_the_control():
    found = rendered_gap([False] * 8, [True] * 6 + [False] * 2)
    assert (found.control, found.reference) == (0.25, 0.25)
    assert found.interval == paired_difference_interval(2, 6, 0, 0)


def test_rendered_gap__a_generator_that_draws_the_reference_badly_confirms_nothing():
    assert rendered_gap([True] * 16, [False] * 16, [True] * 16).verdict == NOT_CONFIRMED
    assert rendered_gap([False] * 16, [False] * 16, [True] * 16).verdict == CONFIRMED


def test_pasted_flips__by_hand():
    flipped, control = [True] * 10 + [False] * 10, [True] * 9 + [False] * 11
    found = pasted_flips(flipped, control, repairs=True)
    assert (found.changed, found.control, found.difference) == (0.5, 0.45, pytest.approx(0.05))
    assert found.interval == paired_difference_interval(9, 1, 0, 10)
    assert (found.verdict, found.repairs) == (NOT_CONFIRMED, True)


def test_pasted_flips__a_control_that_flips_more_is_no_confirmation():
    assert pasted_flips([False] * 20, [True] * 20).verdict == NOT_CONFIRMED


@pytest.mark.parametrize("n", [0, MIN_PAIRS - 1])
def test_pasted_flips__too_few_pairs_are_not_measured(n):
    found = pasted_flips([True] * n, [False] * n)
    assert (found.verdict, found.interval, found.images) == (NOT_MEASURED, None, n)
    assert f"only {n} pairs" in found.reason


def test_pairs__of_unequal_length_or_kind_are_refused():
    with pytest.raises(DataError, match="rendered_gap"):
        rendered_gap([True] * 3, [True] * 4)
    with pytest.raises(DataError, match="boolean"):
        pasted_flips([0.5] * 9, [True] * 9)


def test_verdicts__chance_confirms_in_at_most_a_twentieth():
    """Pairs that flip equally often, independently or together, with rates from rare to even."""
    rng = np.random.default_rng(0)
    confirmed = []
    for n in (10, 32, 40):
        for rate in (0.05, 0.2, 0.5):
            for together in (0.0, 0.8):
                one, other = rng.random((2, 400, n)) < rate
                other = np.where(rng.random((400, n)) < together, one, other)
                verdicts = [pasted_flips(*pair).verdict for pair in zip(one, other, strict=True)]
                confirmed.append(np.mean([verdict == CONFIRMED for verdict in verdicts]))
    assert max(confirmed) <= 0.05


def test_hottest_box__grows_until_it_holds_half_of_the_heat():
    heat = torch.zeros(16, 32)
    heat[3:5, 20:24] = 1
    top, left, bottom, right = hottest_box(heat)
    assert (bottom - top, right - left) == (0.25, 0.25)
    assert top <= 3 / 16 < 5 / 16 <= bottom
    assert left <= 20 / 32 < 24 / 32 <= right
    heat = torch.zeros(16, 16)
    heat[2:10, 2:10] = 1
    assert hottest_box(heat) == (2 / 16, 2 / 16, 8 / 16, 8 / 16)  # 36 of 64
    spread = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    top, left, bottom, right = hottest_box(spread)
    assert (bottom - top, right - left) == (0.5, 0.5)


def test_hottest_box__a_map_without_heat_has_a_region():
    assert hottest_box(torch.full((4, 4), 0.7)) == (0.0, 0.0, 0.25, 0.25)


def test_paste__only_the_region_changes_and_neither_image():
    target, source = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    found = paste(target, source, (0.5, 0.25, 0.75, 1.0))
    assert float(found.sum()) == 3 * 2 * 6
    assert bool((found[:, 4:6, 2:] == 1).all())
    assert float(target.sum()) == 0


def test_paste__from_an_image_of_another_size():
    found = paste(torch.zeros(1, 6, 6), torch.ones(3, 12, 24), (0.0, 0.0, 0.5, 0.5))
    assert float(found.sum()) == 9
    assert float(paste(torch.zeros(1, 2, 2), torch.ones(1, 2, 2), (0.4, 0.4, 0.6, 0.6)).sum()) >= 1  # never nothing


def test_resized__channels():
    rgb = torch.stack([torch.full((4, 4), value) for value in (0.0, 0.5, 1.0)])
    assert torch.equal(resized(rgb, (1, 4, 4)), torch.full((1, 4, 4), 0.5))
    assert resized(torch.ones(1, 4, 4), (3, 8, 2)).shape == (3, 8, 2)


def test_reports__keep_their_checks_and_old_ones_load():
    check = rendered_gap([False] * 9, [True] * 9, generator="drawing")
    flips = pasted_flips([True] * 9, [False] * 9)
    report = FailureReport(
        9, 0.5, (ClassReport("cat", 9, counterfactual=check),), features=(FeatureReport(3, counterfactual=flips),)
    )
    assert FailureReport.from_json(report.to_json()) == report
    old = report.to_dict()
    del old["classes"][0]["counterfactual"], old["features"][0]["counterfactual"]
    loaded = FailureReport.from_dict(old)
    assert (loaded.classes[0].counterfactual, loaded.features[0].counterfactual) == (None, None)
