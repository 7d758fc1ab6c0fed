"""Class names, JSON files and the printed summary of a pool."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_failures.directions import fit_failure_directions
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.pools import PoolManifest, PoolShard, score_shard, write_pool_shard
from lightning_failures.pools.fitted import FittedDirections, load_fitted
from lightning_failures.pools.results import resolve_class_names, write_results
from tests.helpers.toy import Images


@pytest.mark.parametrize(
    ("given", "of_dataset", "of_run", "agreed"),
    [
        (None, None, None, ()),
        (["a", "b"], ["x", "y"], None, ["a", "b"]),
        (None, ["a", "b"], ("a", "b"), ["a", "b"]),
        (None, None, ("a", "b"), ["a", "b"]),
        (["tumour"], None, ("no tumour", "tumour"), ["no tumour", "tumour"]),
        (["a", "b", "c"], None, ("a", "b"), "3 against 2"),
        (None, ["a", "c"], ("a", "b"), "label 1 is c here and b there"),
    ],
)
def test_resolve_class_names__of_run_and_pool(run_folder, given, of_dataset, of_run, agreed):
    data = Images(4)
    data.classes = of_dataset
    fitted = None if of_run is None else replace(load_fitted(run_folder), class_names=of_run)
    if isinstance(agreed, str):
        with pytest.raises(ConfigurationError, match=agreed):
            resolve_class_names(given, data, fitted)
    else:
        assert list(resolve_class_names(given, data, fitted)) == list(agreed)


def test_write_results__a_missing_shard(tmp_path):
    pool = PoolManifest("f", "n", examples=50, shard_size=4).claim(tmp_path)
    for number in range(pool.shards):
        pool.path(tmp_path, number).parent.mkdir(exist_ok=True)
        pool.path(tmp_path, number).touch()
    pool.path(tmp_path, 2).unlink()
    options = {"fitted": None, "k": 1, "names": (), "dataset": None, "patience": 0.0}
    with pytest.raises(DataError, match=r"1 of 13 shards are missing in .* Run the command again"):
        write_results(pool, tmp_path, limited=False, **options)


def test_write_results__many_classes_in_few_lines(tmp_path, capsys):
    size, classes = 600, 12
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(size, 5, generator=generator), torch.arange(size) % classes
    keys = torch.randint(2**60, (size, 2), generator=generator)
    pool = PoolManifest("f", "n", examples=size, shard_size=size)
    for level, message in ((0.0, "and 2 more classes"), (None, "No class with a pattern")):
        right = x[:, 0] > 0 if level is not None else torch.rand(size, generator=generator) > 0.5
        directions = fit_failure_directions(x, labels, right, permutations=999)
        shard = score_shard(PoolShard(torch.arange(size), labels, keys, x), directions)
        write_pool_shard(shard, pool.path(tmp_path, 0), pool=pool.digest)
        write_results(
            pool,
            tmp_path,
            fitted=FittedDirections(directions, tmp_path),
            k=1,
            names=["<b>\n"],
            dataset=None,
            limited=False,
            patience=0.0,
        )
        shown = capsys.readouterr().out
        assert message in shown
        assert len(shown.splitlines()) < 16
