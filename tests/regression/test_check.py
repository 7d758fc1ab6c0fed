"""The test of pinned slices: what it finds, how often it is wrong, and what cannot be checked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import fisher_exact

from lightning_failures.errors import DataError
from lightning_failures.regression import assert_pins_hold, check_pins
from tests.regression.pins import FIRST, grades, looked_at, pin


def only(pins, looked, **options):
    (check,) = check_pins(pins, looked, **options)
    return check


def test_check__the_p_value_is_the_larger_of_two_exact_tests():
    check = only(pin(), looked_at(16, 9))
    against_then = fisher_exact([[16, 24], [4, 36]], alternative="greater")[1]
    against_rest = fisher_exact([[16, 24], [9, 51]], alternative="greater")[1]
    assert check.p_value == pytest.approx(max(against_then, against_rest))
    assert check.status == "reopened"
    assert (check.examples, check.failures, check.joined, check.new, check.gone) == (40, 16, 40, 0, 0)
    assert (check.error_rate, check.rest_error_rate, check.level) == (0.4, 0.15, 0.1)
    assert check.interval[0] < 0.4 < check.interval[1]


def test_check__as_good_as_then_holds():
    assert only(pin(), looked_at(4, 6)).status == "holds"
    assert only(pin(), looked_at(6, 2)).holds  # more than then, but by chance


def test_check__a_model_that_is_worse_altogether_has_reopened_nothing():
    check = only(pin(), looked_at(24, 36))
    assert check.status == "holds"
    assert check.p_value > 0.3
    assert only(pin(), looked_at(24, 6)).status == "reopened"


def test_check__what_failed_more_often_than_the_rest_all_along_has_not_reopened():
    """A slice that was accepted at its error rate fails more often than the rest; that is not news."""
    accepted = pin(failures=14)
    assert only(accepted, looked_at(15, 6)).status == "holds"
    assert only(accepted, looked_at(30, 6)).status == "reopened"


def test_check__an_open_slice_fails_until_it_is_fixed():
    was_open = pin(failures=24, level_of="rest")
    assert only(was_open, looked_at(24, 6)).status == "open"
    assert only(was_open, looked_at(5, 6)).status == "holds"
    assert was_open.level.rate == 0.1


def test_check__images_are_joined_by_digest_whatever_their_index():
    order = np.random.default_rng(0).permutation(100)
    looked = looked_at(16, 9)
    failed, digests = looked.failed.numpy()[order].tolist(), looked.digests.numpy()[order].tolist()
    assert only(pin(), grades(failed, digests)) == only(pin(), looked)


def test_check__images_that_are_gone_and_images_with_another_label_are_counted():
    looked = looked_at(0, 0)
    keep = 37  # three images are deleted, four are dogs now
    digests = [FIRST + i for i in range(keep)] + [FIRST + i for i in range(40, 100)]
    labels = [1] * 4 + [0] * (len(digests) - 4)
    check = only(pin(), grades([False] * len(digests), digests, labels))
    assert (check.joined, check.gone, check.relabelled) == (33, 7, 4)
    assert len(looked) == 100


def test_check__new_images_belong_to_the_slice_if_the_direction_says_so():
    digests = [*range(FIRST, FIRST + 100), *range(9000, 9020)]
    embeddings = torch.ones(120, 2)
    embeddings[100:110, 0] = -1  # ten of twenty new images
    embeddings[40:60, 0] = -1  # images that the class had before, by the cross-fitted values outside of the slice
    embeddings[110:112] = float("nan")
    looked = grades([False] * 100 + [True] * 20, digests)
    assert only(pin(), looked).examples == 40
    check = only(pin(), looked, embeddings=embeddings)
    assert (check.examples, check.new, check.failures) == (50, 10, 10)
    assert only(pin(), looked, embeddings=embeddings.numpy()[:, :]) == check


def test_check__copies_of_an_image_count_once():
    looked = looked_at(16, 9)
    twice = grades(looked.failed.tolist() * 2, looked.digests.tolist() * 2)
    assert only(pin(), twice) == only(pin(), looked)


def test_check__images_of_one_source_count_as_fewer():
    failed, digests = [True] * 16 + [False] * 84, list(range(FIRST, FIRST + 100))
    alone = only(pin(), grades(failed, digests))
    sources = torch.arange(100) // 8
    together = only(pin(), grades(failed, digests, groups=sources))
    assert alone.p_value < together.p_value
    assert together.interval[0] < alone.interval[0]


def test_check__several_pins_are_corrected_by_holm():
    pins = [pin(name=str(i)) for i in range(20)]
    one = only(pin(), looked_at(13, 9))
    assert one.status == "reopened"
    assert 0.05 / 20 < one.p_value < 0.05
    together = check_pins(pins, looked_at(13, 9))
    assert {check.status for check in together} == {"holds"}
    assert together[0].adjusted_p_value == pytest.approx(20 * one.p_value)


def test_check__false_alarms_are_rarer_than_the_level():
    """Slices that fail as often as then, and as the rest: 400 looks at two pins, fewer than 5 % raise an alarm."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        stored = [pin(failures=int(rng.binomial(40, 0.3)), rest=18, name=name) for name in "ab"]
        now = grades((rng.random(100) < 0.3).tolist(), list(range(FIRST, FIRST + 100)))
        alarms += any(not check.holds for check in check_pins(stored, now))
    assert alarms / 400 < 0.05


def test_check__reopened_patterns_are_found():
    """From 10 % to 40 % in 40 images: found in most looks."""
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(100):
        failed = np.concatenate([rng.random(40) < 0.4, rng.random(60) < 0.1])
        found += not only(pin(), grades(failed.tolist(), list(range(FIRST, FIRST + 100)))).holds
    assert found > 80


# -- what cannot be checked ----------------------------------------------------------------------------------------


def test_check__a_class_that_is_gone_names_the_remedy():
    check = only(pin(), looked_at(4, 6, class_names=("cats", "dog")))
    assert check.status == "not checked"
    assert not check.holds
    assert "the class 'cat' does not exist any more" in check.sentence
    assert "Did you mean cats?" in check.sentence
    assert "Delete the pin" in check.sentence


def test_check__no_image_found_again_names_the_remedy():
    check = only(pin(), grades([True] * 50, list(range(50))))
    assert (check.status, check.gone) == ("not checked", 40)
    assert "none of its images is in these data (40 were pinned, 40 are gone)" in check.note
    assert only(pin(), grades([True] * 3, [FIRST, FIRST + 1, FIRST + 2])).status == "not checked"
    assert only(pin(), looked_at(4, 6, digests=None)).note.startswith("the images are unknown")
    assert only(pin(), grades([], [])).status == "not checked"


def test_check__a_class_that_is_all_slice_is_tested_against_then_alone():
    whole = pin(others=0)
    assert only(whole, looked_at(30, 0, others=0)).status == "reopened"
    assert only(whole, looked_at(4, 0, others=0)).rest_error_rate is None


def test_check__pins_are_read_from_files(tmp_path):
    pin().save(tmp_path / "a.pin")
    for given in (tmp_path, tmp_path / "a.pin", str(tmp_path), [tmp_path, pin(name="b")]):
        assert check_pins(given, looked_at(16, 9))[0].name == "cat 1"


def test_check__rows_must_agree():
    with pytest.raises(DataError, match="embeddings must have 100 rows"):
        check_pins(pin(), looked_at(4, 6), embeddings=torch.zeros(3, 2))


def test_assertion__names_what_does_not_hold():
    assert_pins_hold(check_pins(pin(), looked_at(4, 6)))
    with pytest.raises(AssertionError, match="1 of 2 pinned slices do not hold:\n  cat 1 has reopened: 30 of 40"):
        assert_pins_hold(check_pins([pin(), pin(name="x", failures=30)], looked_at(30, 6)))
    with pytest.raises(AssertionError, match="No pinned slice was checked"):
        assert_pins_hold([])
