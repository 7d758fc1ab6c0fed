import pytest
import torch
from torch.utils.data import Subset

from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.evaluation_pass import Collector
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.ranks import Communicator
from tests.helpers.toy import ColourEncoder, Images


def collector(dataset=None, **options):
    return Collector(
        **(
            {"dataset": dataset, "class_names": None, "task": None, "cached_encoders": (), "ranks": Communicator()}
            | options
        )
    )


class Cases(list):
    """An example of which several come from one patient."""

    classes = ("well", "ill")
    groups = (5, 5, 8, 8)
    patients = (1, 2, 3, 4)


def test_grades__sorted_by_id_each_once():
    """As a shuffled loader, a padding sampler and a second look would hand them over."""
    found = collector(Images(6))
    found.grade(torch.eye(4)[[1, 0]] * 9, torch.tensor([1, 3]), [5, 2])
    found.grade(torch.eye(4)[[2, 3]] * 9, torch.tensor([2, 3]), torch.tensor([0, 2]))
    grades = found.grades()
    assert grades.ids.tolist() == [0, 2, 5]
    assert grades.labels.tolist() == [2, 3, 1]
    assert grades.predictions.tolist() == [2, 0, 1]  # the first row of example 2 counts
    assert grades.coverage == 0.5
    assert grades.class_names == ("class 0", "class 1", "class 2", "class 3")


def test_grades__groups_of_the_examples():
    found = collector(Cases([0] * 4))
    found.grade(torch.eye(2)[[0, 1, 0]], torch.tensor([0, 1, 1]), [3, 0, 2])
    assert found.grades().groups.tolist() == [5, 8, 8]
    other = collector(Cases([0] * 4), groups_from="patients")
    other.grade(torch.eye(2), torch.tensor([0, 1]), [3, 0])
    assert other.grades().groups.tolist() == [1, 4]


def test_grades__groups_through_a_subset():
    found = collector(Subset(Cases([0] * 4), [3, 0]))
    found.grade(torch.eye(2), torch.tensor([0, 1]), [0, 1])
    assert found.grades().groups.tolist() == [8, 5]
    assert found.grades().class_names == ("well", "ill")


def test_grades__sources_with_names():
    cases = Cases([0] * 4)
    cases.groups = ["ann", "bob", "ann", "cy"]
    found = collector(cases)
    found.grade(torch.eye(2)[[0, 1, 0, 1]], torch.tensor([0, 1, 1, 0]), [0, 1, 2, 3])
    first, second, third, fourth = found.grades().groups.tolist()
    assert first == third
    assert len({first, second, fourth}) == 3


def test_grades__unknown_length_has_full_coverage():
    found = collector(object())
    found.grade(torch.eye(2), torch.tensor([0, 1]), [10**12, 3])
    assert found.grades().coverage == 1.0
    assert found.grades().ids.tolist() == [3, 10**12]


@pytest.mark.parametrize("logits", [torch.tensor([1.0, -1.0]), torch.tensor([[1.0], [-1.0]])])
@pytest.mark.parametrize(
    ("names", "expected"), [(None, ("0", "1")), (["ill"], ("no ill", "ill")), (["well", "ill"], ("well", "ill"))]
)
def test_grades__binary(logits, names, expected):
    found = collector(class_names=names)
    found.grade(logits, torch.tensor([1, 1]), [0, 1])
    assert found.task == "binary"
    assert found.grades().predictions.tolist() == [1, 0]
    assert found.grades().class_names == expected


def test_grades__multilabel_has_a_row_for_each_condition():
    found = collector(Cases([0] * 4), class_names=["edema", "mass", "cyst"])
    labels = torch.tensor([[0, 1, 1], [1, 0, 0]])
    found.grade((labels * 2 - 1).float(), labels, [3, 1])
    grades = found.grades()
    assert grades.ids.tolist() == [1, 1, 1, 3, 3, 3]
    assert grades.labels.tolist() == [1, 2, 4, 0, 3, 5]
    assert grades.correct.all()
    assert grades.groups.tolist() == [5, 5, 5, 8, 8, 8]
    assert grades.coverage == 0.5
    assert grades.class_names[4:] == ("no cyst", "cyst")


def test_grades__multilabel_of_one_condition():
    found = collector(task="multilabel")
    found.grade(torch.tensor([[2.0], [-2.0]]), torch.tensor([[1], [1]]), [0, 1])
    assert found.grades().labels.tolist() == [1, 1]
    assert found.grades().class_names == ("no 0", "0")


def test_grades__predicted_classes_need_names():
    found = collector(class_names=["a", "b", "c"])
    found.grade(torch.tensor([2, 0]), torch.tensor([2, 1]), [0, 1])
    assert found.grades().correct.tolist() == [True, False]
    with pytest.raises(ConfigurationError, match="give class_names"):
        collector().grade(torch.tensor([2, 0]), torch.tensor([2, 1]), [0, 1])


def test_logit_columns__names_tell_before_the_first_batch():
    assert collector().logit_columns is None
    found = collector(Images(4))
    assert found.logit_columns == 4
    assert found.has_names
    assert not found.named
    binary = collector(class_names=["well", "ill"])
    binary.grade(torch.zeros(2), torch.tensor([0, 1]), [0, 1])
    assert binary.logit_columns == 1


@pytest.mark.parametrize(
    ("options", "origin"),
    [
        ({"class_names": ["a", "b"]}, r"FailureModes\(class_names=\.\.\.\)"),
        ({"dataset": Cases([0] * 4)}, r"dataset\.classes"),
    ],
)
def test_class_names__wrong_number(options, origin):
    with pytest.raises(ConfigurationError, match=f"{origin} has 2 names, but the model has 3 logits"):
        collector(**options).grade(torch.eye(3), torch.tensor([0, 1, 2]), [0, 1, 2])


def test_grade__refused():
    with pytest.raises(ConfigurationError, match="2 labels, but 3 ids"):
        collector().grade(torch.eye(2), torch.tensor([0, 1]), [0, 1, 2])
    with pytest.raises(DataError, match="classes allow 0 to 1"):
        collector().grade(torch.eye(2), torch.tensor([0, 2]), [0, 1])


# -- embeddings ----------------------------------------------------------------------------------------------


@pytest.fixture
def cached(tmp_path):
    return CachedEncoder(ColourEncoder(), EmbeddingCache(tmp_path))


def test_embeddings__by_id_whatever_the_order(cached):
    images = Images(6).images
    found = collector(cached_encoders=[cached])
    for rows in ([4, 1, 0], [3, 1, 5]):
        found.embed(images[rows], ImageSpace(), torch.tensor(rows))
    ids = torch.tensor([0, 1, 3, 4, 5])
    embeddings = found.embeddings(cached, [ids])
    torch.testing.assert_close(embeddings, ColourEncoder().encode_images(images[ids]), atol=2e-3, rtol=2e-3)
    assert cached.encoder.embedded == 5  # nothing twice


def test_embeddings__some_of_them_and_none_if_one_is_lacking(cached):
    images = Images(6).images
    found = collector(cached_encoders=[cached])
    found.embed(images[:4], ImageSpace(), torch.tensor([0, 1, 2, 1]))
    assert found.embeddings(cached, [torch.tensor([1, 2])]).shape == (2, 12)
    assert found.embeddings(cached, [torch.tensor([1, 5])]) is None
    assert found.embeddings(cached, [torch.tensor([1, 2, 3])]) is None


def test_embeddings__of_several_lenses_and_the_next_pass(cached, tmp_path):
    images, other = Images(4).images, CachedEncoder(ColourEncoder("other"), EmbeddingCache(tmp_path))
    for _ in range(2):
        found = collector(cached_encoders=[cached, other])
        assert found.looks
        found.embed(images, ImageSpace(), torch.arange(4))
        assert all(found.embeddings(each, [torch.arange(4)]).shape == (4, 12) for each in (cached, other))
    assert cached.encoder.embedded == other.encoder.embedded == 4


def test_embeddings__of_images_in_the_users_space(cached):
    images, space = Images(4).images, ImageSpace((0.5,), (0.25,))
    found = collector(cached_encoders=[cached])
    found.embed((images - 0.5) / 0.25, space, torch.arange(4))
    embeddings = found.embeddings(cached, [torch.arange(4)])
    torch.testing.assert_close(embeddings, ColourEncoder().encode_images(images), atol=2e-3, rtol=2e-3)
    with pytest.raises(DataError, match="instead of 0 to 1"):
        found.embed(images * 9, space, torch.arange(4))


def test_embeddings__none_seen(cached):
    assert collector(cached_encoders=[cached]).embeddings(cached, [torch.arange(0)]).shape == (0, 12)
    assert collector(cached_encoders=[cached]).embeddings(cached, [torch.arange(2)]) is None
    assert not collector().looks
