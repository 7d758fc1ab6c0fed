"""Exact copies among the analysed examples are one source, without being asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.copies import join_sources_of_equal_digests
from lightning_failures.data.grades import Grades
from lightning_failures.data.partition import owned_rows
from lightning_failures.directions import fit_failure_directions
from lightning_failures.trees import fit_failure_tree
from tests.data.test_partition import together

DIM = 16


def copied(classes=12, images=60, copies=4, *, seed=0, noise=0.0):
    """Return labels, failures and embeddings of images that each occur some times; failures are noise by image."""
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(classes * images), copies)
    x = rng.normal(size=(classes * images, DIM)).astype(np.float32)[image]
    x += noise * rng.normal(size=x.shape).astype(np.float32)
    failed = (rng.random(classes * images) < 0.4)[image]
    return image % classes, failed, x, image


def graded(labels, failed, groups=None):
    """Return grades of these labels and failures."""
    labels = torch.from_numpy(labels)
    n_classes = int(labels.max()) + 1
    predictions = torch.where(torch.from_numpy(failed), (labels + 1) % n_classes, labels)
    names = tuple(f"class {k}" for k in range(n_classes))
    groups = None if groups is None else torch.from_numpy(groups)
    return Grades(torch.arange(len(labels)), labels, predictions, torch.ones(len(labels)), names, groups)


def patterns(report):
    """Return the number of classes with a pattern."""
    return sum(bool(entry.pattern) for entry in report.classes)


def test_copies__noise_on_copied_images_is_no_pattern():
    labels, failed, x, image = copied()
    report = analyse(graded(labels, failed), x, permutations=199)
    assert patterns(report) == 0
    assert report.copies == 12 * 60 * 3
    assert any("2160 examples are exact copies" in note for note in report.notes)
    # as if the groups had been given, and unlike images that only look the same
    known = analyse(graded(labels, failed, image), x, permutations=199)
    assert [entry.p_value for entry in known.classes] == [entry.p_value for entry in report.classes]
    _, _, nearly, _ = copied(noise=1e-4)
    unknown = analyse(graded(labels, failed), nearly, permutations=199)
    assert patterns(unknown) >= 10
    assert (unknown.copies, [note for note in unknown.notes if "copies" in note]) == (0, [])


def test_copies__join_the_groups_that_are_given():
    """Frames of videos, where two videos share one frame: all frames of both are one source."""
    labels, failed, x, _ = copied(classes=1, images=120, copies=1)
    videos = np.repeat(np.arange(40), 3)
    x[3] = x[0]
    joined = np.where(videos == 1, 0, videos)
    found = fit_failure_directions(x, labels, ~failed, groups=videos, permutations=99)
    expected = fit_failure_directions(x, labels, ~failed, groups=joined, permutations=99)
    assert torch.equal(found.out_of_fold, expected.out_of_fold)
    assert torch.equal(found.p_value, expected.p_value)


def test_copies__published_selection_is_the_papers():
    labels, failed, x, _ = copied(classes=1)
    apart = np.arange(len(x)).reshape(60, 4).T.ravel()  # published folds are halves of the rows
    x, correct = x[apart], ~failed[apart]
    published = fit_failure_directions(x, labels, correct, selection="published", permutations=0)
    joined = fit_failure_directions(x, labels, correct, permutations=0)
    assert float(published.cv_score[0]) > float(joined.cv_score[0]) + 0.15  # copies of what it is scored on were fitted


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_copies__of_any_type_in_one_row_per_example_or_per_graded_row(dtype):
    labels, failed, x, _ = copied(classes=2)
    grades = graded(labels, failed)
    assert analyse(grades, torch.from_numpy(x.astype(dtype)), permutations=19).copies == 2 * 60 * 3
    twice = torch.arange(len(labels)).repeat_interleave(2)  # two conditions of one example are no copies
    condition = torch.arange(2 * len(labels)) % 2
    rows = Grades(twice, condition, condition, torch.ones(2 * len(labels)), ("a", "b"))
    unique = np.random.default_rng(1).normal(size=x.shape).astype(dtype)
    assert analyse(rows, unique, permutations=0).copies == 0


def test_copies__of_a_sample_and_of_several_processes():
    labels, failed, x, _ = copied(classes=4)
    grades = graded(labels, failed)
    sampled = np.arange(len(labels)) % 5 > 0
    alone = analyse(grades, x[sampled], sampled=sampled, permutations=99)
    assert 0 < alone.copies < 4 * 60 * 3

    def share(workers):
        mine = owned_rows(grades, workers.rank, workers.world_size, sampled=sampled)
        return analyse(grades, x[mine], sampled=sampled, permutations=99, workers=workers)

    for report in together(2, share):
        assert report.copies == alone.copies
        assert [entry.p_value for entry in report.classes] == [entry.p_value for entry in alone.classes]


def test_tree__copies_share_a_fold_but_rows_of_few_attributes_do_not():
    _, failed, x, image = copied(classes=1)
    assert not fit_failure_tree(x, failed).pattern
    known = fit_failure_tree(x, failed, groups=4 * image)  # each named by its first copy
    assert fit_failure_tree(x, failed).heldout_aler == known.heldout_aler
    attributes = np.random.default_rng(0).integers(0, 2, (600, 10)).astype(np.float32)  # many equal rows by chance
    attributes[:, 3:] = 0
    tree = fit_failure_tree(attributes, (attributes[:, 0] > 0) & (np.arange(600) % 5 > 0))
    assert tree.pattern
    assert tree.split_features[0] == 0


def test_join_equal_digests__before_the_validation_set_is_split():
    grades = graded(np.zeros(6, dtype=np.int64), np.zeros(6, dtype=bool))
    assert join_sources_of_equal_digests(grades) is grades
    digests = torch.tensor([4, 9, 4, -1, -1, 9])
    assert join_sources_of_equal_digests(replace(grades, digests=digests)).groups.tolist() == [0, 1, 0, 3, 4, 1]
    videos = replace(grades, digests=digests, groups=torch.tensor([0, 0, 1, 1, 2, 3]))
    assert join_sources_of_equal_digests(videos).groups.tolist() == [0, 0, 0, 0, 2, 0]


@pytest.mark.slow
def test_copies__level_of_the_tests_on_copied_noise():
    """Raw p-values of 240 null classes of copies, and trees of 60: no more small ones than the nominal level."""
    small = 0
    for seed in range(10):
        labels, failed, x, _ = copied(classes=24, images=50, copies=3, seed=seed)
        small += int((fit_failure_directions(x, labels, ~failed, permutations=199).p_value <= 0.05).sum())
    assert small <= 21  # 12 expected, and 21 exceeded with probability 0.006
    trees = 0
    for seed in range(60):
        _, failed, x, _ = copied(classes=1, images=100, copies=3, seed=seed)
        trees += fit_failure_tree(x, failed).pattern
    assert trees <= 8
