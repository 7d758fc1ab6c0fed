"""Margins and disagreement by hand, the loss against its definition and its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_failures.baselines import disagreement, generalised_cross_entropy, margins
from lightning_failures.errors import DataError


def test_margins__by_hand_and_bad_input():
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    np.testing.assert_allclose(margins(p, [1, 2]), [-0.2, 0.7])
    with pytest.raises(DataError, match="labels must be"):
        margins(p, [3, 0])
    with pytest.raises(DataError, match="at least two"):
        margins(p[:, :1], [0, 0])


def test_disagreement__entropy_of_the_mean_minus_mean_entropy():
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=(5, 7))

    def entropy(q):
        return -(q * np.log(q)).sum(axis=-1)

    np.testing.assert_allclose(disagreement(p), entropy(p.mean(axis=0)) - entropy(p).mean(axis=0), atol=1e-12)
    assert disagreement(np.eye(3)[None]).tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(DataError, match="shape"):
        disagreement(p[0])


def test_loss__definition_gradient_and_limits():
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.softmax(dim=1)[torch.arange(6), labels]
    assert float(generalised_cross_entropy(logits, labels).detach()) == pytest.approx(
        float(((1 - p**0.7) / 0.7).mean().detach()), abs=1e-6
    )
    near = generalised_cross_entropy(logits, labels, q=1e-4)
    assert float(near.detach()) == pytest.approx(float(F.cross_entropy(logits, labels).detach()), rel=1e-3)
    (ours,) = torch.autograd.grad(generalised_cross_entropy(logits, labels) * 6, logits, retain_graph=True)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    torch.testing.assert_close(ours, plain * p[:, None].detach() ** 0.7, atol=1e-6, rtol=1e-5)
    extreme = torch.tensor([[1e4, -1e4]], requires_grad=True)
    generalised_cross_entropy(extreme, torch.tensor([1])).backward()
    assert torch.isfinite(extreme.grad).all()
    with pytest.raises(DataError, match="q must be"):
        generalised_cross_entropy(logits, labels, q=0)
