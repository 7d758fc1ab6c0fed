"""The shopping list of a pool: which images, how different they are, and what they gain."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_failures.data.report import ClassReport
from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.standardize import standardize
from lightning_failures.errors import ConfigurationError
from lightning_failures.pools import PoolManifest, PoolShard, write_pool_shard
from lightning_failures.pools.fitted import FittedDirections
from lightning_failures.pools.shards import POOL_UNLABELLED, round_to_half, score_shard
from lightning_failures.pools.shopping import patterns_of, shopping_list
from tests.helpers.toy import NORMALIZE, ColourEncoder, Images, OracleClassifier, callback, loader
from tests.helpers.toy import trainer as toy_trainer
from tests.processes.embed_pool import trainer

DIM, CLASSES, SIZE = 8, 3, 900
NAMES = ("cat", "dog", "eel")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


def rows(size: int, seed: int):
    """Embeddings of three classes; negative first coordinates are hard, in classes 0 and 1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(size) % CLASSES
    x = rng.normal(size=(size, DIM))
    x[np.arange(size), 2 + labels] += 6
    return x.astype(np.float32), labels


def fitted(*, centres: bool = True, report: bool = True) -> FittedDirections:
    x, labels = rows(600, 0)
    rng = np.random.default_rng(1)
    correct = (x[:, 0] + 0.3 * rng.normal(size=600) > -0.3) | (labels == 2)
    correct[labels == 2] = rng.random(200) < 0.5
    found = fit_failure_directions(x, labels, correct, permutations=99)
    if centres:
        phi = standardize(x.astype(np.float64), found.mean.double().numpy(), found.std.double().numpy())
        means = np.stack([phi[labels == k].mean(axis=0) for k in range(CLASSES)])
        found = replace(found, centres=torch.from_numpy(means).float())
    gains = (12.0, 30.0, None)
    classes = tuple(
        ClassReport(name, 200, pattern=k < 2, gain=gain, looked_at=200, failures_looked_at=60, flagged=70)
        for k, (name, gain) in enumerate(zip(NAMES, gains, strict=True))
    )
    return FittedDirections(found, Path("run"), NAMES, "f", classes if report else ())


def pool(folder: Path, directions, *, labelled: bool = True, embeddings: bool = True, shard: int = 128) -> PoolManifest:
    x, labels = rows(SIZE, 7)
    manifest = PoolManifest("f", "n", examples=SIZE, shard_size=shard)
    keys = torch.randint(2**60, (SIZE, 2), generator=torch.Generator().manual_seed(0))
    for number in range(manifest.shards):
        ids = torch.tensor(manifest.block(number))
        y = torch.from_numpy(labels)[ids] if labelled else torch.full((len(ids),), POOL_UNLABELLED)
        one = score_shard(PoolShard(ids, y, keys[ids], round_to_half(torch.from_numpy(x)[ids])), directions)
        one = one if embeddings else replace(one, embeddings=None)
        write_pool_shard(one, manifest.path(folder, number), pool=manifest.digest)
    return manifest


def test_shopping__flagged_images_of_the_classes_with_a_pattern(tmp_path):
    run = fitted()
    found = shopping_list(tmp_path, pool(tmp_path, run.directions), run, 20, names=NAMES)
    x, labels = rows(SIZE, 7)
    assert [one.name for one in found.classes] == ["dog", "cat"]  # the larger gain first
    for one in found.classes:
        ids = one.picks.ids.numpy()
        assert len(set(ids.tolist())) == 20
        assert (labels[ids] == one.label).all()
        values = run.directions.decision_values(x[ids], labels[ids]).numpy()
        assert (values < 0).all()
        assert one.picks.values.tolist() == pytest.approx(values.tolist(), abs=1e-2)
        assert not one.guessed.any()
        assert one.picks.shortfall is None


def test_shopping__images_differ_more_than_the_hardest_do(tmp_path):
    run = fitted()
    manifest = pool(tmp_path, run.directions)
    found = shopping_list(tmp_path, manifest, run, 20)
    x, labels = rows(SIZE, 7)

    def mean_cosine(ids):
        unit = x[ids] / np.linalg.norm(x[ids], axis=1, keepdims=True)
        return float(((unit @ unit.T).sum() - len(ids)) / (len(ids) * (len(ids) - 1)))

    for one in found.classes:
        mine = np.flatnonzero(labels == one.label)
        hardest = mine[np.argsort(run.directions.decision_values(x[mine], labels[mine]).numpy())[:20]]
        assert mean_cosine(one.picks.ids.numpy()) < mean_cosine(hardest) - 0.05


def test_shopping__images_without_labels_count_for_the_nearest_class(tmp_path):
    run = fitted()
    found = shopping_list(tmp_path, pool(tmp_path, run.directions, labelled=False), run, 20, names=NAMES)
    _, labels = rows(SIZE, 7)
    for one in found.classes:
        assert (labels[one.picks.ids.numpy()] == one.label).mean() > 0.9
        assert one.guessed.all()
    images = found.images(lambda i: f"/pool/{i}.png")
    assert len(images) == 40
    assert all(image.is_guess and image.path == f"/pool/{image.id}.png" for image in images)


def test_shopping__does_not_depend_on_the_shards(tmp_path):
    run = fitted()
    lists = []
    for size in (128, 900):
        manifest = pool(tmp_path / str(size), run.directions, shard=size)
        found = shopping_list(tmp_path / str(size), manifest, run, 20)
        lists.append([one.picks.ids.tolist() for one in found.classes])
    assert lists[0] == lists[1]


def test_shopping__the_expected_gain_is_that_of_the_report(tmp_path):
    run = fitted()
    found = shopping_list(tmp_path, pool(tmp_path, run.directions), run, 500, names=NAMES)
    dog, cat = found.to_dict()["classes"]
    assert dog["expected"]["failures_removed"] == 30.0
    assert (dog["expected"]["error_rate"], dog["expected"]["error_rate_after"]) == (0.3, 0.15)
    assert cat["images"] < 500
    assert f"no more than {cat['images']} different flagged images" in cat["shortfall"]
    lines = found.lines()
    assert lines[0].startswith(f"  dog: {dog['images']} images to label; fixing the pattern removes up to 30 of 60")
    json.dumps(found.to_dict(), allow_nan=False)
    bare = shopping_list(tmp_path, PoolManifest("f", "n", SIZE, 128), fitted(report=False), 5)
    assert all(one.expected is None for one in bare.classes)


def test_shopping__faults_name_the_remedy(tmp_path):
    run = fitted()
    none = replace(run, classes=tuple(replace(one, pattern=False) for one in run.classes))
    manifest = pool(tmp_path / "a", run.directions)
    with pytest.raises(ConfigurationError, match="no class of run has a pattern"):
        shopping_list(tmp_path / "a", manifest, none, 5)
    manifest = pool(tmp_path / "b", run.directions, embeddings=False)
    with pytest.raises(ConfigurationError, match="needs embeddings in the shards"):
        shopping_list(tmp_path / "b", manifest, run, 5)
    former = fitted(centres=False)
    manifest = pool(tmp_path / "c", former.directions, labelled=False)
    with pytest.raises(ConfigurationError, match=r"former version and has no class centres.* Analyse the model"):
        shopping_list(tmp_path / "c", manifest, former, 5)


def test_patterns__without_a_report_by_p_values():
    assert patterns_of(fitted()) == [0, 1]
    assert patterns_of(fitted(report=False)) == [0, 1]


# -- the command ---------------------------------------------------------------------------------------------------


class Unlabelled(Images):
    """Images without labels, each with a file."""

    def __init__(self, size: int) -> None:
        super().__init__(size, seed=21)
        self.samples = [f"/pool/{i}.png" for i in range(size)]

    def __getitem__(self, index):
        return {"image": NORMALIZE(self.images[index])}


class Pool(L.LightningDataModule):
    def __init__(self, dataset) -> None:
        super().__init__()
        self.dataset = dataset

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=25)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run on toy images."""
    folder = tmp_path_factory.mktemp("run")
    validation = toy_trainer(folder, callback(encoder=ColourEncoder(), cache_folder=folder / "cache"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        validation.validate(OracleClassifier(), loader(400), verbose=False)
    (report,) = folder.rglob("no_logger/*/report.json")
    return report.parent


def test_embed__a_pool_without_labels_is_shopped(run, tmp_path, capsys):
    data = Unlabelled(300)
    for _ in range(2):  # the second time from the shards
        encoder = ColourEncoder()
        trainer(encoder).embed(OracleClassifier(), Pool(data), output=tmp_path / "out", directions=run, shop=6)
    assert encoder.embedded == 0
    said = capsys.readouterr().out
    assert "No example has a label, by whose direction it could be scored." in said
    assert "images to label; fixing the pattern removes up to " in said
    shop = tmp_path / "out" / "shop"
    tasks = json.loads((shop / "label_studio.json").read_text())
    ids = [task["data"]["pool_id"] for task in tasks]
    assert len(ids) == len(set(ids)) >= 6  # the colours hardly tell classes apart, so few classes are guessed
    assert float(data.dark[ids].float().mean()) > 0.9
    assert [task["data"]["image"].rsplit("/", 1)[1] for task in tasks] == [f"{i}.png" for i in ids]
    samples = json.loads((shop / "fiftyone" / "samples.json").read_text())["samples"]
    assert len(samples) == len(tasks)
    assert json.loads((shop / "shop.json").read_text())["images"] == len(tasks)


def test_embed__shopping_without_what_it_needs_is_an_error(run, tmp_path):
    def embed(**options):
        trainer(ColourEncoder()).embed(OracleClassifier(), Pool(Unlabelled(30)), output=tmp_path / "out", **options)

    with pytest.raises(ConfigurationError, match="--shop needs --directions with the folder of a run"):
        embed(shop=3)
    with pytest.raises(ConfigurationError, match="--shop needs --keep_embeddings=true"):
        embed(shop=3, directions=run, keep_embeddings=False)
    with pytest.raises(ConfigurationError, match="--shop must be at least 1"):
        embed(shop=0, directions=run)
