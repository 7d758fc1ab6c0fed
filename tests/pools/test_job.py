"""The work of one process of a pool."""

import pytest
import torch

from lightning_failures.encoders.tolerant import MAX_FAILURES
from lightning_failures.errors import ConfigurationError, DataError, EncoderError
from lightning_failures.pools.job import PoolJob, ShardWriter, writing
from lightning_failures.pools.manifest import PoolManifest
from lightning_failures.pools.shards import read_pool_shard
from lightning_failures.pools.source import PoolSource
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.readable import Unreadable
from tests.helpers.toy import ColourEncoder, OracleClassifier


def test_writing__a_full_disk_names_the_remedy(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot be written \(full\).*resume"), writing(tmp_path):
        raise OSError("full")


class Fails(ColourEncoder):
    """An encoder that fails for bright images."""

    def __init__(self, how="raise"):
        super().__init__()
        self.how = how

    def encode_images(self, images):
        rows = super().encode_images(images)
        failing = images.amin((1, 2, 3)) > 0.9
        if self.how == "raise" and failing.any():
            raise RuntimeError("planted")
        return rows.masked_fill(failing[:, None], float("nan"))


def writer_of(folder, n, *, size=8, encoder=None):
    """Return a writer of a pool of n examples, in batches of 4."""
    source = PoolSource(OracleClassifier())
    job = PoolJob(source, encoder or Fails(), BatchReader(normalization=((0.0,), (1.0,))), folder)
    manifest = PoolManifest("f", "n", examples=n, shard_size=size)
    return ShardWriter(job, manifest, job.encoder, None, 3, iter([range(k, k + 4) for k in range(0, n, 4)]))


def batch_of(ids, failing=()):
    images = torch.rand(len(ids), 3, 4, 4, generator=torch.Generator().manual_seed(ids[0])) / 2
    for row, i in enumerate(ids):
        images[row] = 0.99 if i in failing else images[row]
    return images, torch.zeros(len(ids)).long()


def taken(writer, n, failing=()):
    for start in range(0, n, 4):
        ids = list(range(start, start + 4))
        writer.take([(ids, batch_of(ids, failing))])


def stored(writer, number):
    path = writer.manifest.path(writer.job.folder, number)
    return read_pool_shard(path, writer.manifest.block(number), pool=writer.manifest.digest) if path.is_file() else None


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_take__what_cannot_be_embedded_is_left_out_with_its_reason(tmp_path, how):
    writer = writer_of(tmp_path, 8, encoder=Fails(how))
    writer.take([([1], Unreadable("OSError: gone")), ([0, 2, 3], batch_of([0, 2, 3], {2}))])
    images, labels = batch_of([4, 5, 6, 7])
    images[0, 0, 0, 0] = float("nan")
    images[3] *= 900
    writer.take([([4, 5, 6, 7], (images, labels))])
    shard = stored(writer, 0)
    assert shard.ids.tolist() == [0, 3, 5, 6]
    assert len(shard.embeddings) == len(shard.keys) == len(shard.labels) == 4
    assert list(shard.left_out) == [1, 2, 4, 7]
    reason = "RuntimeError: planted" if how == "raise" else "no finite embedding"
    assert list(shard.left_out.values()) == [
        "OSError: gone",
        f"encoder colours: {reason}",
        "NaN or infinite pixels",
        "values far outside [0, 1]",
    ]
    first = ColourEncoder().encode_images(batch_of([0, 2, 3])[0])
    torch.testing.assert_close(shard.embeddings[:2].float(), first[[0, 2]], atol=1e-3, rtol=1e-3)


def test_take__a_block_without_a_single_image(tmp_path):
    writer = writer_of(tmp_path, 12, size=4)
    for ids in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]):
        bad = [([i], Unreadable("gone")) for i in ids]
        writer.take([(ids, batch_of(ids))] if ids[0] != 4 else bad)
    assert [len(stored(writer, number)) for number in range(3)] == [4, 0, 4]
    assert stored(writer, 1).embeddings.shape == (0, 12)


@pytest.mark.parametrize("how", ["raise", "nan"])
def test_take__an_encoder_that_breaks_down_leaves_nothing_out(tmp_path, how):
    n = 12 + MAX_FAILURES
    writer = writer_of(tmp_path, n, encoder=Fails(how))
    with pytest.raises(RuntimeError if how == "raise" else EncoderError, match=r"planted|no finite embedding for 32"):
        taken(writer, n, range(12, n))
    assert stored(writer, 0).left_out == {}
    assert [stored(writer, number) for number in range(1, n // 8)] == [None] * (n // 8 - 1)


def test_take__shards_wait_for_the_next_image_that_is_embedded(tmp_path):
    writer = writer_of(tmp_path, 32)
    failing = {*range(5, 18), 31}
    taken(writer, 16, failing)
    assert stored(writer, 0) is stored(writer, 1) is None
    for start in range(16, 32, 4):
        ids = list(range(start, start + 4))
        writer.take([(ids, batch_of(ids, failing))])
        assert set(stored(writer, 0).left_out) == {5, 6, 7}
        assert len(stored(writer, 1)) == 0
    assert stored(writer, 3) is None
    writer.finish()
    assert set(stored(writer, 3).left_out) == {31}


def test_take__several_examples_without_images_are_an_error(tmp_path):
    with pytest.raises(DataError, match="Found no images"):
        writer_of(tmp_path, 8).take([([0, 1, 2, 3], {"sound": torch.zeros(4)})])
    writer = writer_of(tmp_path, 8, size=1)
    writer.take([([i], {"sound": torch.zeros(1)}) for i in range(4)])
