import pytest
import torch

from lightning_failures import BatchRecord
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.image_space import ImageSpace
from tests.helpers.toy import Images

# -- batches -------------------------------------------------------------------------------------------------


def test_read__own_fields_first_the_default_fills_the_rest():
    x, y = torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    ids = torch.tensor([7, 9])
    reader = BatchReader(read_batch=lambda outputs, batch: BatchRecord(logits=outputs["scores"], ids=ids))
    scores = torch.eye(2)
    record = reader.read({"scores": scores, "logits": scores * 9}, (x, y))
    assert record.logits is scores
    assert record.ids is ids
    assert record.images is x
    assert record.labels is y


def test_read__an_own_reader_may_take_any_batch():
    reader = BatchReader(read_batch=lambda outputs, batch: BatchRecord(labels=batch.y))
    record = reader.read(None, type("Batch", (), {"y": torch.tensor([1])})())
    assert record.labels.tolist() == [1]
    assert record.images is None


def test_space__said_found_or_plain():
    data = Images(4)
    assert BatchReader(normalization=([0.1, 0.2, 0.3], [1, 1, 2])).space(data) == ImageSpace((0.1, 0.2, 0.3), (1, 1, 2))
    assert BatchReader().space(data) == ImageSpace((0.5,), (0.25,))
    assert BatchReader().space([1]) == BatchReader().space(None) == ImageSpace()
    with pytest.raises(ConfigurationError, match="normalization"):
        BatchReader(normalization=([0.1, 0.2], [1, 1])).space(data)


def test_shown_images__those_of_the_batch_whatever_read_batch_returns():
    x, y = torch.zeros(2, 4, 4, 3), torch.tensor([0, 1])
    reader = BatchReader(read_batch=lambda outputs, batch: BatchRecord(images=batch[0].permute(0, 3, 1, 2)))
    record = reader.read(None, (x, y))
    assert record.images.shape == (2, 3, 4, 4)
    assert reader.shown_images((x, y), record) is x
    assert reader.shown_images("a batch of one's own", record) is record.images
