"""``embed`` leaves out the examples that cannot be embedded, counts and names them, in one process and in two."""

from __future__ import annotations

import json

import pytest
import torch
from torchvision.transforms import v2 as T

from lightning_failures import FailureModes
from lightning_failures.directions import FailureDirections
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.pools import PoolManifest
from lightning_failures.pools.shards import read_pool_shard
from tests.end_to_end.test_trust_data_libraries import NORMALIZATION, as_tutorials_do, real, stand_in
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, OverOneFile
from tests.pools.conftest import run_folder  # noqa: F401 - a fixture
from tests.pools.synthetic import everything
from tests.processes.embed_pool import BATCH, SHARD, SIZE, Damaged, K, Pool, trainer
from tests.processes.launch import fork, ranks

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
]
GOOD = [i for i in range(SIZE) if i not in Damaged.BAD]


def embed(output, *, data=None, encoder=None, trainer_options=None, **arguments):
    encoder = encoder or ColourEncoder()
    run = trainer(encoder, **(trainer_options or {}))
    pool = data if isinstance(data, Pool) else Pool(data or Damaged(SIZE, seed=7))
    run.embed(OracleClassifier(), pool, output=output, **({"k": K, "shard_size": SHARD} | arguments))
    return encoder


def files(output):
    return {path.name: path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def stored(output):
    pool = PoolManifest.load(output)
    return [read_pool_shard(pool.path(output, k), pool.block(k), pool=pool.digest) for k in range(pool.shards)]


def assert_left_out(output):
    """Check that all but the bad examples are there, with the right rows, and that these are counted and named."""
    shards = stored(output)
    assert torch.cat([shard.ids for shard in shards]).tolist() == GOOD
    embeddings, labels = everything(Images(SIZE, seed=7))  # mean colours do not change when an image is repeated
    torch.testing.assert_close(
        torch.cat([shard.embeddings for shard in shards])[:, :3].float(), embeddings[GOOD, :3], atol=1e-3, rtol=1e-3
    )
    assert torch.equal(torch.cat([shard.labels for shard in shards]), labels[GOOD])
    left_out = json.loads((output / "pool.json").read_text())["left_out"]
    assert left_out["examples"] == len(Damaged.BAD)
    named = {row["id"]: row["reason"] for row in left_out["first"]}
    assert list(named) == sorted(Damaged.BAD)
    assert all(named[i].startswith(reason) for i, reason in Damaged.BAD.items())


@pytest.fixture(scope="module")
def alone(run_folder):  # noqa: F811
    """What one process makes of a pool with bad examples."""
    embed(run_folder / "alone", directions=run_folder)
    return run_folder / "alone"


def test_embed__bad_examples_are_left_out_counted_and_named(alone, run_folder, capsys):  # noqa: F811
    assert_left_out(alone)
    directions = FailureDirections.load(run_folder / "directions.safetensors")
    shards = stored(alone)
    values = torch.cat([shard.values for shard in shards])
    found = directions.decision_values(
        torch.cat([shard.embeddings for shard in shards]).float(), torch.cat([shard.labels for shard in shards])
    )
    torch.testing.assert_close(values, found)
    written = json.loads((alone / "pool.json").read_text())
    assert sum(entry["examples"] for entry in written["classes"]) == len(GOOD)

    # again: nothing is read, and the same is reported
    before = files(alone)
    assert embed(alone, directions=run_folder).embedded == 0
    assert files(alone) == before
    printed = capsys.readouterr().out
    assert (
        f"{len(Damaged.BAD)} examples are left out (see pool.json): 0 (OSError: image 0 is truncated), 1 (" in printed
    )
    assert f"and {len(Damaged.BAD) - 3} more" in printed


def test_embed__taken_up_again_with_bad_examples(alone, run_folder, tmp_path):  # noqa: F811
    limit = 3 * -(-SHARD // BATCH)
    embed(tmp_path, trainer_options={"limit_predict_batches": limit})
    embed(tmp_path)
    assert embed(tmp_path, directions=run_folder).embedded == 0  # scored later, without an image
    assert files(tmp_path) == files(alone)
    (tmp_path / "shards" / "shard-0000001.safetensors").unlink()
    assert embed(tmp_path, directions=run_folder).embedded == SHARD - 2
    assert files(tmp_path) == files(alone)


def test_embed__mended_examples_are_embedded_once_their_shards_are_removed(run_folder, tmp_path):  # noqa: F811
    embed(tmp_path, directions=run_folder)
    whole = Images(SIZE, seed=7)
    assert embed(tmp_path, directions=run_folder, data=whole).embedded == 0
    for number in {i // SHARD for i in Damaged.BAD}:
        (tmp_path / "shards" / f"shard-{number:07d}.safetensors").unlink()
    embed(tmp_path, directions=run_folder, data=whole)
    assert json.loads((tmp_path / "pool.json").read_text())["left_out"] == {"examples": 0, "first": []}
    assert torch.cat([shard.ids for shard in stored(tmp_path)]).tolist() == list(range(SIZE))


class OpensLate(OverOneFile, Damaged):
    """A damaged pool over one file, which is opened by the first look and cannot be shared with another process."""


@pytest.mark.slow
def test_embed__bad_examples_with_workers(alone, run_folder, tmp_path):  # noqa: F811
    pool = Pool(OpensLate(SIZE, seed=7), num_workers=2, persistent_workers=True)
    embed(tmp_path, directions=run_folder, data=pool)
    assert files(tmp_path) == files(alone)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true", "16-true"])
def test_embed__bad_examples_pass_the_precision_plugin(tmp_path, precision):
    """The plugin converts whatever stands in a batch."""
    embed(tmp_path, trainer_options={"precision": precision})
    assert torch.cat([shard.ids for shard in stored(tmp_path)]).tolist() == GOOD


@pytest.mark.slow
def test_embed__bad_examples_on_two_processes(alone, run_folder):  # noqa: F811
    output, folder = run_folder / "two", run_folder / "second"
    ended = fork("embed_pool", folder, output, 2, 1, -1, 1, environments=ranks(2), timeout=300)
    assert [one.status for one in ended] == [0, 0], ended[0].said + ended[1].said
    assert_left_out(output)
    assert files(output) == files(alone)
    assert len(list((folder / output.name).glob("embedded_*.txt"))) == 2  # both have worked
    assert f"{len(Damaged.BAD)} examples are left out" in ended[0].said
    assert "left out" not in ended[1].said


def test_embed__hooks_meet_no_bad_example_twice(tmp_path):
    class Raw(Damaged):
        def __init__(self, size, seed):
            super().__init__(size, seed=seed)
            self.transform = torch.nn.Identity()

    class OnDevice(Pool):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            images, labels = batch
            if images.shape[1] != 3:
                raise ValueError("no colours")
            return T.functional.normalize(images, [0.5], [0.25]), labels

    run = trainer(None)
    run.callbacks.append(FailureModes(encoder=ColourEncoder(), normalization=([0.5], [0.25])))
    run.embed(OracleClassifier(), OnDevice(Raw(SIZE, seed=7)), output=tmp_path, shard_size=SHARD)
    assert torch.cat([shard.ids for shard in stored(tmp_path)]).tolist() == GOOD
    assert stored(tmp_path)[1].left_out[21] == "ValueError: no colours"


# -- most of a pool ---------------------------------------------------------------------------------------------------


class Mostly(Images):
    """A pool of which most examples are bad in one way."""

    def __init__(self, edit, bad=lambda index: index % 10 != 9):
        super().__init__(SIZE, seed=7)
        self.edit, self.bad = edit, bad

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return self.edit(image, label) if self.bad(index) else (image, label)


def unreadable(image, label):
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (unreadable, DataError, r"cannot be embedded, such as 0 \(OSError: the disk is gone\).*Mend the dataset"),
        (lambda image, label: (image * torch.nan, label), DataError, r"0 \(NaN or infinite pixels\)"),
        (lambda image, label: (image * 900, label), ConfigurationError, r"instead of 0 to 1\. Give the normalization="),
        (lambda image, label: (image, -1), DataError, "A pool needs one class for each example"),
    ],
)
def test_embed__a_pool_of_which_most_examples_are_bad_is_an_error_at_once(tmp_path, edit, error, message):
    encoder = ColourEncoder()
    with pytest.raises(error, match=message):
        embed(tmp_path, data=Mostly(edit), encoder=encoder)
    assert encoder.embedded == 0
    assert not any(tmp_path.rglob("*"))


def test_embed__a_pool_that_proves_to_be_bad_is_an_error_in_the_end(tmp_path):
    good = [*range(0, SIZE, 5), *(k * SIZE // 16 for k in range(16)), SIZE - 1]
    with pytest.raises(DataError, match=r"of 250 examples of the pool cannot be embedded: 1 \(OSError.*more\..*remove"):
        embed(tmp_path, data=Mostly(unreadable, lambda index: index not in good))
    assert not (tmp_path / "pool.json").exists()


def test_embed__labels_that_are_no_class_are_unlabelled(tmp_path, run_folder):  # noqa: F811
    pool = Mostly(lambda image, label: (image, -100), lambda index: index in (3, 40, 41))
    embed(tmp_path, data=pool, directions=run_folder)
    labels = torch.cat([shard.labels for shard in stored(tmp_path)])
    assert (labels == -1).nonzero().flatten().tolist() == [3, 40, 41]
    classes = {
        entry["class"]: entry["examples"] for entry in json.loads((tmp_path / "pool.json").read_text())["classes"]
    }
    assert classes["unlabelled"] == 3
    assert embed(tmp_path, data=pool).embedded == 0


def test_embed__a_pool_of_grey_and_colour_alike(tmp_path):
    """The encoder decides: most take grey images; one that gives them fewer features has no embedding of them."""

    class AnyChannels(ColourEncoder):
        def encode_images(self, images):
            return super().encode_images(images.expand(-1, 3, -1, -1))

    pool = Mostly(lambda image, label: (image[:1], label), lambda index: index % 4 == 3)
    assert embed(tmp_path / "any", data=pool, encoder=AnyChannels()).embedded == SIZE
    embed(tmp_path / "colour", data=pool)
    left_out = json.loads((tmp_path / "colour" / "pool.json").read_text())["left_out"]
    assert left_out["examples"] == SIZE // 4
    assert left_out["first"][0] == {"id": 3, "reason": "encoder colours: 4 numbers instead of 12", "path": None}


# -- typed columns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [stand_in, real])
@pytest.mark.parametrize(
    ("image", "label", "extra"),
    [
        ("img", "fine_label", {"coarse_label": [0] * 160}),
        ("photo", "species", {"y": list(range(160)), "x": list(range(160))}),
        ("scan", "finding", {}),
    ],
)
def test_embed__typed_columns(tmp_path, run_folder, make, image, label, extra):  # noqa: F811
    data = make(image, label, **extra).with_transform(as_tutorials_do(image, out=image))
    run = trainer(None)
    run.callbacks.append(FailureModes(encoder=ColourEncoder(), normalization=NORMALIZATION))
    (run_folder / "report.json").unlink(missing_ok=True)  # its classes have other names
    run.embed(OracleClassifier(), Pool(data), output=tmp_path, directions=run_folder, shard_size=SHARD)
    labels = torch.cat([shard.labels for shard in stored(tmp_path)])
    assert torch.equal(labels, Images(160).labels)
    embeddings, _ = everything(Images(160))
    torch.testing.assert_close(
        torch.cat([shard.embeddings for shard in stored(tmp_path)]).float(), embeddings, atol=5e-3, rtol=5e-3
    )
    written = json.loads((tmp_path / "pool.json").read_text())
    assert {entry["class"] for entry in written["classes"]} == set(data.features[label].names)
