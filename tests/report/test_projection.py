"""Embeddings in a plane."""

from __future__ import annotations

import torch

from lightning_failures.report.projection import project


def test_project__keeps_groups_apart_and_is_deterministic():
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(60) % 3
    centres = 9 * torch.randn(3, 128, generator=generator)
    embeddings = centres[group] + torch.randn(60, 128, generator=generator)
    places = project(embeddings)
    assert places.shape == (60, 2)
    assert places.min() == 0.0
    assert places.max() == 1.0
    means = torch.stack([places[group == k].mean(0) for k in range(3)])
    nearest = torch.cdist(places, means).argmin(1)
    assert torch.equal(nearest, group)
    assert torch.equal(project(embeddings.clone()), places)
    order = torch.randperm(60, generator=generator)
    assert torch.allclose(project(embeddings[order]), places[order], atol=1e-5)


def test_project__rows_that_are_not_embedded_and_flat_data():
    some = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    with_missing = torch.cat([some, torch.full((2, 3), float("nan"))])
    assert torch.equal(project(with_missing)[:8], project(some))
    assert project(with_missing)[8:].isnan().all()
    assert project(torch.ones(4, 3)).tolist() == [[0.5, 0.5]] * 4
    assert project(torch.full((2, 3), float("nan"))).isnan().all()
    assert project(torch.tensor([[1.0], [3.0]]))[:, 1].tolist() == [0.5, 0.5]
