"""The values of each method: shared by methods with one source, none after an error."""

from __future__ import annotations

from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch

from lightning_failures.analysis.fits import DirectionsFit, TreesFit
from lightning_failures.data.grades import Grades
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.methods.directions import Directions
from lightning_failures.methods.trees import Trees
from lightning_failures.trainer.evaluation_pass import EmbeddingPass, EvaluationPass
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.method_values import values_of_methods
from lightning_failures.trainer.ranks import Communicator
from tests.helpers.toy import ColourEncoder, Images

RANKS = Communicator()
LABELS = torch.arange(8) % 4
GRADES = Grades(torch.arange(8), LABELS, torch.zeros(8).long(), torch.ones(8), ("a", "b", "c", "d"))
METHODS = ((Directions(), DirectionsFit()), (Trees(), TreesFit()))


@pytest.fixture
def cached(tmp_path):
    return CachedEncoder(ColourEncoder(), EmbeddingCache(tmp_path))


@pytest.fixture
def evaluation(cached):
    embeddings = EmbeddingPass(cached_encoders=[cached], ranks=RANKS)
    embeddings.embed(Images(8).images, ImageSpace(), torch.arange(8))
    return EvaluationPass(Grader(dataset=None, class_names=None, task=None, ranks=RANKS), embeddings)


@contextmanager
def plain(name):
    yield


def test_values__of_each_method_with_an_encoder(evaluation, cached):
    sampled = np.arange(8) != 3
    found = values_of_methods(METHODS, {"encoder": cached}, evaluation, GRADES, sampled, RANKS, plain)
    assert list(found) == ["directions"]
    expected = ColourEncoder().encode_images(Images(8).images[torch.from_numpy(sampled)])
    torch.testing.assert_close(found["directions"], expected, atol=2e-3, rtol=2e-3)
    both = {"encoder": cached, "robust_encoder": cached}
    found = values_of_methods(METHODS, both, evaluation, GRADES, sampled, RANKS, plain)
    assert list(found) == ["directions", "trees"]


def test_values__an_error_costs_the_methods_of_its_source(evaluation, cached, monkeypatch, tmp_path):
    gather, broken = evaluation.embeddings.embeddings_of, CachedEncoder(ColourEncoder(), EmbeddingCache(tmp_path))

    def embeddings_of(one, wanted):
        if one is broken:
            raise ArithmeticError("planted")
        return gather(one, wanted)

    monkeypatch.setattr(evaluation.embeddings, "embeddings_of", embeddings_of)
    both = {"encoder": broken, "robust_encoder": cached}
    every = np.ones(8, dtype=bool)
    found = values_of_methods(METHODS, both, evaluation, GRADES, every, RANKS, lambda _: suppress(ArithmeticError))
    assert list(found) == ["trees"]
    with pytest.raises(ArithmeticError, match="planted"):
        values_of_methods(METHODS, both, evaluation, GRADES, every, RANKS, plain)
