"""What the words of a class are worth, against scikit-learn and by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from lightning_failures.analysis.analyse import analyse
from lightning_failures.captions import score_captions
from lightning_failures.captions.assign import caption_margins, nearest_curve, nearest_rows
from tests.analysis.test_analyse import planted, words


@pytest.fixture(scope="module")
def worded():
    grades, x = planted(900)
    return grades, x, analyse(grades, x, captions=lambda k: words(), permutations=99)


def test_margins__standard_deviations_beyond_the_mean_of_all_candidates(worded):
    _, _, report = worded
    for k, entry in enumerate(report.classes):
        scores = score_captions(report.directions, k, words().embeddings, words().reference).double().numpy()
        ranked = np.sort((scores - np.mean(scores)) / np.sqrt(np.mean((scores - np.mean(scores)) ** 2)))
        assert entry.hardest_caption_margins == pytest.approx(-ranked[:5])
        assert entry.easiest_caption_margins == pytest.approx(ranked[::-1][:5])
    assert report.classes[1].hardest_caption_margins[0] > 2.5


def test_margins__of_candidates_that_score_alike_there_are_none():
    grades, x = planted(300)
    assert caption_margins(torch.full((5,), 0.25)) is None
    entry = analyse(grades, x, captions=lambda k: words([5]), permutations=9).classes[1]
    assert entry.hardest_captions == ("along axis 5",)
    assert entry.hardest_caption_margins == entry.easiest_caption_margins == ()


def test_nearest__accuracy_of_the_nearest_by_scikit_learns_cosine(worded):
    grades, x, report = worded
    texts = words()
    for k, entry in enumerate(report.classes):
        mine = grades.labels == k
        assert [point.k for point in entry.nearest] == [10, 20, 40, 80, 160, 300]
        for end, caption in (("hardest", entry.hardest_captions[0]), ("easiest", entry.easiest_captions[0])):
            text = texts.embeddings[texts.texts.index(caption)]
            order = np.argsort(-cosine_similarity(x[mine].double(), text[None].double())[:, 0])
            right = grades.correct[mine].numpy()[order]
            expected = [right[: point.k].mean() for point in entry.nearest]
            assert [getattr(point, end) for point in entry.nearest] == pytest.approx(expected)
    dog = report.classes[1]
    assert dog.nearest[-1].hardest == dog.nearest[-1].easiest == pytest.approx(dog.accuracy)
    assert dog.nearest[0].hardest < dog.accuracy - 0.2


def test_nearest_curve__by_hand():
    """Examples turn from the first caption to the second, a degree each; those before 15 fail."""
    angles = np.deg2rad(np.arange(30))
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, 31)[:, None]
    points = nearest_curve(nearest_rows(x, torch.tensor([[2.0, 0.0], [0.0, 0.5]])), np.arange(30) < 15)
    assert [(point.k, point.hardest, point.easiest) for point in points] == [
        *((10, 0.0, 1.0), (20, 0.25, 0.75), (30, 0.5, 0.5))
    ]


def test_nearest_curve__ties_by_id_zeros_and_few():
    points = nearest_curve(nearest_rows(np.zeros((12, 2)), torch.eye(2)), np.arange(12) < 6)
    assert [(point.k, point.hardest) for point in points] == [(10, 0.4), (12, 0.5)]
    few = nearest_curve(nearest_rows(np.ones((10, 2)), torch.eye(2)), np.ones(10, dtype=bool))
    assert [point.k for point in few] == [10]
    assert len(nearest_curve(nearest_rows(np.ones((30_000, 2)), torch.eye(2)), np.ones(30_000, dtype=bool))) == 12
