"""Limits of time and memory: read, and kept."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.core.budget import Deadline, bytes_of, read_bytes, read_time, sampling_rank, share_that_fits


@pytest.mark.parametrize(
    ("limit", "seconds", "share"),
    [(30, 30.0, None), (0.5, 0.5, None), ("12.5%", None, 0.125), (" 200 % ", None, 2.0), ("7", 7.0, None)],
)
def test_read_time__seconds_or_a_share(limit, seconds, share):
    found = read_time(limit)
    assert (found.seconds, found.share) == (seconds, share)


@pytest.mark.parametrize("limit", [0, -1, "0%", "ten", "5 %%", "", True, float("nan"), float("inf"), "1e400"])
def test_read_time__anything_else_is_refused(limit):
    with pytest.raises(ValueError):  # noqa: PT011 - of float() or our own
        read_time(limit)


def test_time_limit__of_an_epoch():
    assert read_time("10%").of(50.0) == pytest.approx(5.0)
    assert read_time("10%").of(None) is None
    assert read_time(3).of(None) == 3.0


@pytest.mark.parametrize(
    ("limit", "size"), [(1000, 1000), ("2 GB", 2 * 10**9), ("2GiB", 2**31), ("1.5kib", 1536), ("7 b", 7), (1e6, 10**6)]
)
def test_read_bytes__numbers_and_sizes(limit, size):
    assert read_bytes(limit) == size


@pytest.mark.parametrize("limit", [0, -5, "ib", "2 XB", "", "GB", True, "1e400", None, float("nan")])
def test_read_bytes__anything_else_is_refused(limit):
    with pytest.raises(ValueError):  # noqa: PT011 - of float() or our own
        read_bytes(limit)


def test_deadline__passes():
    assert Deadline.after(-1).left == 0.0
    assert 0 < Deadline.after(5).left <= 5


def test_sampling_rank__even_and_others_for_another_seed():
    ids = np.arange(20_000) * 13 + 5
    places = sampling_rank(ids)
    assert [(places < share).mean() for share in (0.0, 0.1, 0.3, 0.9, 1.0)] == pytest.approx(
        [0.0, 0.1, 0.3, 0.9, 1.0], abs=0.02
    )
    assert abs((sampling_rank(ids, seed=1)[places < 0.5] < 0.5).mean() - 0.5) < 0.02


def test_share_that_fits__is_the_largest():
    for limit in (10**6, 10**7, 10**8, 10**9):
        share = share_that_fits(limit, 50_000, 512, 5_000)
        assert bytes_of(share * 50_000, 512, share * 5_000) <= limit
        assert share == 1.0 or bytes_of((share + 0.001) * 50_000, 512, (share + 0.001) * 5_000) > limit
    assert share_that_fits(1, 50_000, 512, 5_000) == 0.0
