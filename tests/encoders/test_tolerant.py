"""An encoder that fails for some images costs only these."""

import pytest
import torch

from lightning_failures.encoders.tolerant import MAX_FAILURES, TolerantEncoder
from tests.helpers.broken import Marked, mark


def images_of(n, *marked):
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 2
    for row in marked:
        mark(images[row])
    return images


def test_encode__an_error_costs_the_images_that_cause_it():
    encoder = TolerantEncoder(Marked("raise"))
    embeddings = encoder.encode(images_of(9, 2, 7))
    assert embeddings.isnan().all(1).nonzero().flatten().tolist() == [2, 7]
    assert torch.equal(embeddings[:2], Marked().encode_images(images_of(9))[:2])
    assert encoder.problem == f"encoder {encoder.encoder.name}: RuntimeError: broken image"


def test_encode__gives_up_after_many_errors_in_a_row():
    n, encoder = MAX_FAILURES - 1, TolerantEncoder(Marked("raise"))
    encoder.encode(images_of(n, *range(n)))
    encoder.encode(images_of(2, 1))  # the first one is well, so that the row is interrupted
    encoder.encode(images_of(n - 1, *range(n - 1)))
    with pytest.raises(RuntimeError, match="broken image"):
        encoder.encode(images_of(1, 0))


def test_problem__without_an_error():
    assert TolerantEncoder(Marked("nan")).problem.endswith("no finite embedding")
