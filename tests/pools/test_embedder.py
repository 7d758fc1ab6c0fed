"""``embed``, as a Trainer runs it: in this process, in several, and after an interruption."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningDataModule
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    Subset,
    WeightedRandomSampler,
)
from torchvision.transforms import v2 as T

from lightning_failures import FailureModes
from lightning_failures.bundled.digits.render import CLASSES
from lightning_failures.callback import DataOptions
from lightning_failures.cli import main
from lightning_failures.data.grades import BatchRecord
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.errors import ConfigurationError, DataError, EncoderError
from lightning_failures.pools import PoolManifest
from lightning_failures.pools.embedder import run_job
from lightning_failures.pools.fitted import load_fitted
from lightning_failures.pools.job import PoolJob
from lightning_failures.pools.shards import read_pool_shard
from lightning_failures.pools.source import BlockSampler, PoolSource
from lightning_failures.trainer.batch_reader import BatchReader
from tests.helpers.toy import NORMALIZE, ColourEncoder, Images, OracleClassifier, OverOneFile
from tests.pools.synthetic import everything
from tests.processes.embed_pool import BATCH, SHARD, SIZE, K, Pool, trainer
from tests.processes.launch import fork, free_port, ranks

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]


def embed(
    output: Path, *, data: LightningDataModule | None = None, encoder=None, options=None, **arguments
) -> ColourEncoder:
    encoder = encoder or ColourEncoder()
    run = trainer(encoder, **(options or {}))
    run.embed(OracleClassifier(), data or Pool(), output=output, **({"k": K, "shard_size": SHARD} | arguments))
    return encoder


def shards(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "shards").iterdir())}


def hardest(output: Path) -> dict[str, list[tuple[int, float]]]:
    written = json.loads((output / "hardest.json").read_text())
    return {c["class"]: [(row["id"], row["decision_value"]) for row in c["hardest"]] for c in written["classes"]}


def assert_as_in_memory(output: Path, dataset: Dataset, folder: Path) -> None:
    directions = FailureDirections.load(folder / "directions.safetensors")
    embeddings, labels = everything(dataset)
    values = directions.decision_values(embeddings, labels).numpy()
    found = hardest(output)
    assert len(found) == len(directions.classes) == 4
    for label in directions.classes.tolist():
        mine = np.flatnonzero(labels.numpy() == label)
        expected = mine[np.argsort(values[mine])][:K]
        ids, found_values = zip(*found[f"class {label}"], strict=True)
        # embeddings are kept in float16, so that examples of nearly equal values may change places
        assert found_values == tuple(sorted(found_values))
        np.testing.assert_allclose(found_values, values[list(ids)], atol=2e-3)
        np.testing.assert_allclose(found_values, values[expected], atol=2e-3)


# -- in one process -------------------------------------------------------------------------------------------


def test_embed__as_in_memory(tmp_path, run_folder, capsys):
    encoder = embed(tmp_path, directions=run_folder)
    assert encoder.embedded == SIZE
    assert_as_in_memory(tmp_path, Images(SIZE, seed=7), run_folder)
    pool = PoolManifest.load(tmp_path)
    assert (pool.examples, pool.shards) == (SIZE, 13)
    embeddings, labels = everything(Images(SIZE, seed=7))
    for number in range(pool.shards):
        shard = read_pool_shard(pool.path(tmp_path, number), pool.block(number), pool=pool.digest)
        assert torch.equal(shard.labels, labels[shard.ids])
        torch.testing.assert_close(shard.embeddings.float(), embeddings[shard.ids], atol=1e-3, rtol=1e-3)
    printed = capsys.readouterr().out
    assert f"{SIZE} examples in 13 shards" in printed
    assert "flagged" in printed
    assert str(tmp_path / "hardest.json") in printed
    summary = json.loads((tmp_path / "pool.json").read_text())
    assert sum(entry["examples"] for entry in summary["classes"]) == SIZE


def test_embed__the_order_and_workers_of_the_loader_do_not_matter(tmp_path):
    embed(tmp_path / "plain")
    embed(tmp_path / "shuffled", data=Pool(shuffle=True, drop_last=True))
    assert shards(tmp_path / "plain") == shards(tmp_path / "shuffled")


def test_embed__mixed_precision_of_the_trainer_is_not_that_of_the_encoder(tmp_path):
    embed(tmp_path / "plain")
    embed(tmp_path / "mixed", options={"precision": "bf16-mixed"})
    assert shards(tmp_path / "plain") == shards(tmp_path / "mixed")


class OpensLate(OverOneFile, Images):
    """Like a dataset over one file: opened at the first look, and not to be shared with another process."""


@pytest.mark.slow
def test_embed__with_workers(tmp_path):
    embed(tmp_path / "plain")
    embed(tmp_path / "workers", data=Pool(OpensLate(SIZE, seed=7), num_workers=2, persistent_workers=True))
    assert shards(tmp_path / "plain") == shards(tmp_path / "workers")


def test_embed__again_does_only_what_is_lacking(tmp_path, run_folder):
    embed(tmp_path, directions=run_folder)
    before, results = shards(tmp_path), (tmp_path / "hardest.json").read_bytes()
    names = list(before)
    (tmp_path / "shards" / names[0]).unlink()
    (tmp_path / "shards" / names[5]).write_bytes(before[names[5]][:-9])
    middle = len(before[names[7]]) // 2
    flipped = bytes([before[names[7]][middle] ^ 1])
    (tmp_path / "shards" / names[7]).write_bytes(before[names[7]][:middle] + flipped + before[names[7]][middle + 1 :])
    (tmp_path / "hardest.json").unlink()
    assert embed(tmp_path, directions=run_folder).embedded == 3 * SHARD
    assert shards(tmp_path) == before
    assert (tmp_path / "hardest.json").read_bytes() == results
    assert embed(tmp_path, directions=run_folder, shard_size=None).embedded == 0  # the size is that of before


def test_embed__scored_later_without_an_image(tmp_path, run_folder, capsys):
    embed(tmp_path / "later")
    assert "Not scored" in capsys.readouterr().out
    assert not (tmp_path / "later" / "hardest.json").exists()
    assert embed(tmp_path / "later", directions=run_folder).embedded == 0
    embed(tmp_path / "at once", directions=run_folder)
    assert shards(tmp_path / "later") == shards(tmp_path / "at once")
    assert hardest(tmp_path / "later") == hardest(tmp_path / "at once")


def test_embed__without_keeping_embeddings(tmp_path, run_folder):
    embed(tmp_path / "kept", directions=run_folder)
    embed(tmp_path / "thin", directions=run_folder, keep_embeddings=False)
    assert hardest(tmp_path / "kept") == hardest(tmp_path / "thin")
    sizes = [sum(map(len, shards(tmp_path / name).values())) for name in ("thin", "kept")]
    assert sizes[0] < sizes[1]
    assert embed(tmp_path / "kept", directions=run_folder, keep_embeddings=False).embedded == 0
    assert embed(tmp_path / "thin", directions=run_folder).embedded == SIZE


def test_embed__limited_then_whole(tmp_path, run_folder, capsys):
    limit = 2 * -(-SHARD // BATCH)
    embed(tmp_path, directions=run_folder, options={"limit_predict_batches": limit})
    assert "2 of 13 shards" in capsys.readouterr().out
    assert not (tmp_path / "hardest.json").exists()
    assert embed(tmp_path, directions=run_folder, options={"fast_dev_run": True}).embedded == BATCH
    assert embed(tmp_path, directions=run_folder).embedded == SIZE - 2 * SHARD


def test_embed__results_of_other_directions_do_not_stay(tmp_path, run_folder):
    embed(tmp_path, directions=run_folder)
    embeddings, labels = everything(Images(400, seed=4))
    others = fit_failure_directions(embeddings, labels, embeddings[:, 0] > embeddings[:, 0].median(), permutations=9)
    others.save(tmp_path / "others" / "directions.safetensors")
    first = hardest(tmp_path)
    (tmp_path / "shards" / "shard-0000003.safetensors").unlink()
    embed(tmp_path, directions=tmp_path / "others", options={"limit_predict_batches": 1})
    assert not (tmp_path / "hardest.json").exists()
    assert embed(tmp_path, directions=tmp_path / "others").embedded == SHARD
    assert hardest(tmp_path) != first


def test_embed__half_written_files_go_after_a_day(tmp_path):
    embed(tmp_path)
    old, new = (tmp_path / "shards" / f".writing-{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    embed(tmp_path)
    assert not old.exists()
    assert new.exists()


class FailsOnce(ColourEncoder):
    """Breaks off in the middle."""

    def encode_images(self, images):
        if self.embedded > 100:
            raise RuntimeError("planted")
        return super().encode_images(images)


def test_embed__an_error_leaves_what_is_done(tmp_path):
    broken = FailsOnce()
    with pytest.raises(RuntimeError, match="planted"):
        embed(tmp_path, encoder=broken)
    done = len(shards(tmp_path))
    assert 0 < done < 13
    assert embed(tmp_path).embedded == SIZE - done * SHARD
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(".")] == []


def test_embed__other_splits_and_a_module_with_data(tmp_path):
    class Owner(OracleClassifier):
        def train_dataloader(self):
            return DataLoader(Images(30), batch_size=BATCH, shuffle=True, drop_last=True)

    trainer(ColourEncoder()).embed(Owner(), split="train", output=tmp_path)
    assert PoolManifest.load(tmp_path).examples == 30


def test_embed__batch_hooks_of_the_user_are_called(tmp_path):
    class Raw(Images):
        def __init__(self, size, seed):
            super().__init__(size, seed=seed)
            self.transform = torch.nn.Identity()

    class OnDevice(Pool):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            assert self.trainer.predicting
            return NORMALIZE(batch[0]), batch[1]

    run = trainer(None)
    run.callbacks.append(FailureModes(encoder=ColourEncoder(), normalization=([0.5], [0.25])))
    run.embed(OracleClassifier(), OnDevice(Raw(SIZE, seed=7)), output=tmp_path, shard_size=SHARD)
    pool = PoolManifest.load(tmp_path)
    shard = read_pool_shard(pool.path(tmp_path, 0), pool.block(0), pool=pool.digest)
    embeddings, _ = everything(Images(SIZE, seed=7))
    torch.testing.assert_close(shard.embeddings.float(), embeddings[:SHARD], atol=1e-3, rtol=1e-3)


def test_embed__read_batch_sees_what_the_hooks_return_and_sizes_may_differ(tmp_path):
    class Sizes(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return {"picture": image.repeat(1, 1 + index % 2, 1), "kind": label}

    class Renames(Pool):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {"scan": batch["picture"], "kind": batch["kind"]}

    def read_batch(outputs, batch):
        return BatchRecord(images=batch["scan"], labels=batch["kind"])

    run = trainer(None)
    run.callbacks.append(FailureModes(encoder=ColourEncoder(), read_batch=read_batch))
    run.embed(OracleClassifier(), Renames(Sizes(SIZE, seed=7)), output=tmp_path, shard_size=SHARD)
    pool = PoolManifest.load(tmp_path)
    shard = read_pool_shard(pool.path(tmp_path, 0), pool.block(0), pool=pool.digest)
    embeddings, labels = everything(Images(SIZE, seed=7))  # mean colours do not change when an image is repeated
    torch.testing.assert_close(shard.embeddings[:, :3].float(), embeddings[:SHARD, :3], atol=1e-3, rtol=1e-3)
    assert torch.equal(shard.labels, labels[:SHARD])


def test_embed__leaves_the_model_alone(tmp_path):
    model = OracleClassifier().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(ColourEncoder()).embed(model, Pool(), output=tmp_path)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_embed__paths_of_the_hardest(tmp_path, run_folder):
    data = Images(100, seed=7)
    data.samples = [(f"img/{i}.png", 0) for i in range(100)]
    halves = ConcatDataset([Subset(data, range(50, 100)), Subset(data, range(50))])
    halves.classes = data.classes
    embed(tmp_path, data=Pool(halves), directions=run_folder)
    written = json.loads((tmp_path / "hardest.json").read_text())
    for entry in written["classes"]:
        for row in entry["hardest"]:
            assert row["path"] == f"img/{(row['id'] + 50) % 100}.png"


def test_embed__no_list_of_indices_is_kept(tmp_path):
    """Lightning's own tracker of indices would grow with the pool."""
    run = trainer(ColourEncoder())
    run.embed(OracleClassifier(), Pool(), output=tmp_path, shard_size=SHARD)
    assert isinstance(run.predict_dataloaders.sampler, BlockSampler)
    assert run.predict_dataloaders.batch_sampler is None


class MadeUp(Dataset):
    """Images that take no memory."""

    classes = ("class 0", "class 1", "class 2", "class 3")

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.full((3, 2, 2), index % 1000 / 1000), index % 4


class WatchedEncoder:
    """512 dimensions; notes the most memory that the process had."""

    name, fingerprint, dim = "watched", "tests-watched", 512

    def __init__(self) -> None:
        self.weight = torch.rand(12, 512, generator=torch.Generator().manual_seed(0))
        self.most = 0

    def encode_images(self, images):
        self.most = max(self.most, resident())
        return images.flatten(1) @ self.weight


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Returns(OracleClassifier):
    """What one writes without the command."""

    encoder = WatchedEncoder()

    def predict_step(self, batch, batch_idx):
        return self.encoder.encode_images(batch[0])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account of memory")
def test_embed__memory_does_not_grow_with_the_pool(tmp_path):
    """30,000 embeddings are 61 MB. In a process of its own: one that has done much has room to spare."""
    run = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            f"from tests.pools.test_embedder import growth; growth({str(tmp_path)!r})",
        ],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    of_embed, of_predictions = map(int, run.stdout.split()[-2:])
    assert of_embed < 12 * 2**20
    assert of_predictions > 40 * 2**20  # this test can fail


def growth(folder: str) -> None:
    """Print by how many bytes the command grows with the pool, and by how many predictions that are kept do."""
    tmp_path = Path(folder)
    embed(tmp_path / "small", data=Pool(MadeUp(3_000), batch_size=100), encoder=WatchedEncoder(), shard_size=500)
    before = resident()
    watched = WatchedEncoder()
    embed(tmp_path / "large", data=Pool(MadeUp(30_000), batch_size=100), encoder=watched, shard_size=500)
    grown = watched.most - before
    before = resident()
    kept = trainer(None).predict(Returns(), Pool(MadeUp(30_000), batch_size=100))
    assert len(kept) == 300
    print(grown, Returns.encoder.most - before)


# -- what is refused ------------------------------------------------------------------------------------------


def test_embed__another_encoder_is_refused(tmp_path, run_folder):
    embed(tmp_path, directions=run_folder)
    before = shards(tmp_path)
    with pytest.raises(ConfigurationError, match=r"the encoder differ.*Give another --output"):
        embed(tmp_path, directions=run_folder, encoder=ColourEncoder("others"))
    assert shards(tmp_path) == before


def test_embed__directions_of_another_encoder_are_refused(tmp_path, run_folder):
    class Wider(ColourEncoder):
        dim = property(lambda self: 13, lambda self, value: None)

    with pytest.raises(ConfigurationError, match="12 dimensions"):
        embed(tmp_path, directions=run_folder, encoder=Wider())
    others = replace(load_fitted(run_folder), encoder="another one")
    job = PoolJob(PoolSource(OracleClassifier(), Pool()), ColourEncoder(), BatchReader(), tmp_path, fitted=others)
    with pytest.raises(ConfigurationError, match=r"embeddings of encoder another one, not of colours"):
        run_job(trainer(None), job)
    assert list(tmp_path.iterdir()) == []


def test_embed__changed_images_are_refused(tmp_path):
    embed(tmp_path)
    with pytest.raises(ConfigurationError, match="the images, or their transform differ"):
        embed(tmp_path, data=Pool(Images(SIZE, seed=8)))


def test_embed__random_transforms_are_reported(tmp_path):
    data = Images(SIZE, seed=7)
    data.transform = T.Compose([T.RandomHorizontalFlip(), T.RandomErasing(1.0), NORMALIZE])
    with pytest.warns(UserWarning, match="its transform is random"):
        embed(tmp_path, data=Pool(data))


def test_embed__other_classes_are_refused(tmp_path, run_folder):
    data = Images(SIZE, seed=7)
    data.classes = ["class 0", "class 2", "class 1", "class 3"]
    with pytest.raises(ConfigurationError, match="label 1 is class 2 here and class 1 there"):
        embed(tmp_path, data=Pool(data), directions=run_folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"k": 0}, "--k must be"), ({"shard_size": 0}, "--shard_size"), ({"split": "test"}, "--split predict")],
)
def test_embed__options(tmp_path, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        embed(tmp_path, **arguments)


def test_embed__without_the_callback_or_an_encoder(tmp_path):
    for run in (trainer(None), trainer("x")):
        for callback in run.callbacks:
            if hasattr(callback, "encoder"):
                callback.encoder = None
        with pytest.raises(ConfigurationError, match=r"needs lightning_failures\.FailureModes with an encoder"):
            run.embed(OracleClassifier(), Pool(), output=tmp_path)


def test_embed__a_loader_that_cannot_be_cut_leaves_nothing(tmp_path):
    class Weighted(Pool):
        def predict_dataloader(self):
            data = Images(SIZE, seed=7)
            return DataLoader(data, batch_size=4, sampler=WeightedRandomSampler([1.0] * SIZE, 10))

    with pytest.raises(ConfigurationError, match="Subset"):
        embed(tmp_path, data=Weighted())
    assert list(tmp_path.iterdir()) == []


def test_embed__a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "a file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        embed(tmp_path / "a file" / "pool")


def test_embed__collate_that_drops_examples_is_reported(tmp_path):
    def drops(items):
        return torch.utils.data.default_collate(items[1:])

    with pytest.raises(DataError, match="neither drop nor repeat"):
        embed(tmp_path, data=Pool(collate_fn=drops))


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (lambda y: torch.nn.functional.one_hot(y, 4), None, "task='multiclass'"),
        (lambda y: y + 0.5, None, "one class for each example"),
        (lambda y: None, None, "Scoring needs the label"),
        (lambda y: torch.nn.functional.one_hot(y, 4), "multiclass", None),
        (lambda y: y[:, None], None, None),
    ],
)
def test_embed__labels_of_other_forms(tmp_path, run_folder, labels, task, message):
    def read(outputs, batch):
        x, y = batch["data"]
        return BatchRecord(images=x, labels=labels(y))

    def collate(items):
        return {"data": torch.utils.data.default_collate(items)}

    run = trainer(None)
    run.callbacks.append(FailureModes(encoder=ColourEncoder(), read_batch=read, data=DataOptions(task=task)))
    arguments = {"output": tmp_path, "directions": run_folder, "k": K}
    if message is None:
        run.embed(OracleClassifier(), Pool(collate_fn=collate), **arguments)
        assert_as_in_memory(tmp_path, Images(SIZE, seed=7), run_folder)
    else:
        with pytest.raises(DataError, match=message):
            run.embed(OracleClassifier(), Pool(collate_fn=collate), **arguments)


def test_embed__an_encoder_that_gives_nonsense_is_reported(tmp_path):
    class Broken(ColourEncoder):
        def encode_images(self, images):
            return super().encode_images(images) / 0

    with pytest.raises(EncoderError, match="no finite embedding for 32 images in a row"):
        embed(tmp_path, encoder=Broken())


# -- in several processes -------------------------------------------------------------------------------------


def logged(folder: Path) -> int:
    """How many images all processes have embedded."""
    return sum(int(line) for path in folder.glob("embedded_*.txt") for line in path.read_text().split())


@pytest.fixture(scope="module")
def alone(run_folder) -> Path:
    """What one process makes of the pool."""
    embed(run_folder / "alone", directions=run_folder)
    return run_folder / "alone"


@pytest.mark.slow
def test_embed__killed_and_taken_up_again(run_folder, alone):
    """A process of two is killed; so ends the other. Started again, two do the rest, and nothing twice.

    Then one shard is left of another pool: one of the two has nothing to do.
    """
    killed, few = run_folder / "killed", run_folder / "all but one"
    ended = fork("embed_pool", run_folder / "first", killed, 2, 1, 1, environments=ranks(2), timeout=300)
    assert all(one.status != 0 for one in ended)
    done = shards(killed)
    assert 0 < len(done) < 13
    assert done.items() <= shards(alone).items()
    assert not (killed / "hardest.json").exists()
    shutil.copytree(alone, few)
    (few / "shards" / "shard-0000004.safetensors").unlink()

    folder = run_folder / "second"
    outputs = f"{killed}{os.pathsep}{few}"
    first, second = fork("embed_pool", folder, outputs, 2, 1, -1, environments=ranks(2), timeout=300)
    assert first.status == second.status == 0, first.said + second.said
    assert f"{len(done)} of 13 shards are complete" in first.said
    left = [number for number in range(13) if f"shard-{number:07d}.safetensors" not in done]
    assert logged(folder / killed.name) == sum(len(PoolManifest.load(killed).block(number)) for number in left)
    assert len(list((folder / killed.name).iterdir())) == 2
    assert logged(folder / few.name) == SHARD
    assert "zero length" not in first.said + second.said
    for output in (killed, few):
        assert shards(output) == shards(alone)
        assert (output / "hardest.json").read_bytes() == (alone / "hardest.json").read_bytes()
    assert embed(killed, directions=run_folder).embedded == 0  # whole for one process too


@pytest.mark.slow
def test_embed__two_nodes(run_folder, alone):
    """They share the work in a folder that both see; where each has a folder of its own, that is said at once."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = [
        common | {"NODE_RANK": node, "LOCAL_RANK": "0", "OWN": str(run_folder / f"disk {node}" / "apart")}
        for node in "01"
    ]
    folder, together = run_folder / "nodes", run_folder / "together"
    ended = fork("embed_pool", folder, f"{together}{os.pathsep}$OWN", 1, 2, -1, environments=nodes, timeout=300)
    assert logged(folder / "together") == SIZE
    assert shards(together) == shards(alone)
    for name in ("pool.json", "hardest.json"):
        assert (together / name).read_bytes() == (alone / name).read_bytes()
    assert all(one.status != 0 for one in ended)
    assert "a folder that all of them share" in ended[0].said
    assert "a folder that all of them share" in ended[1].said
    assert logged(folder / "apart") == 0


# -- as a command ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_embed__from_the_packaged_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lightning-failures"])
    text = (ROOT / "configs" / "digits.yaml").read_text()
    (tmp_path / "digits.yaml").write_text(text.replace("robust_encoder: embedded:digits", "pictures: false"))
    quiet = ["--config", "digits.yaml", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    sizes = [f"--data.init_args.{name}=600" for name in ("train_size", "val_size", "pool_size")]
    assert main(["fit", *quiet, *sizes, "--trainer.max_epochs=1"]) == 0
    run = str(tmp_path / "failures-digits" / "digits" / "version_0")
    assert main(["embed", *quiet, *sizes, "--directions", run, "--k=3"]) == 0
    written = json.loads((tmp_path / "failures-pool" / "hardest.json").read_text())
    report = json.loads(Path(run, "failures", "report.json").read_text())
    assert written["encoder"] == report["encoder"] == "embedded:digits"
    assert written["encoder_fingerprint"] == report["encoder_fingerprint"] != ""
    assert {entry["class"] for entry in written["classes"]} <= set(CLASSES)
    assert all(len(entry["hardest"]) == 3 for entry in written["classes"])
    capsys.readouterr()
    assert main(["embed", *quiet, *sizes, "--directions", str(tmp_path / "nowhere")]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err
    assert main(["embed", *quiet, *sizes[:2], "--data.init_args.pool_size=500", "--directions", run]) == 1
    assert "the number of examples" in capsys.readouterr().err
