"""What the first network's captions and directions say about others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models import get_model

from lightning_failures.errors import EncoderError
from lightning_failures.recipes.base import Materials
from lightning_failures.recipes.parts import networks
from lightning_failures.recipes.parts.files import load_network


@pytest.mark.slow
def test_networks__figures_of_a_second_run_a_larger_network_and_a_vit(trained, tmp_path, monkeypatch):
    vit = "shufflenet_v2_x0_5"  # in place of a ViT, which is large
    monkeypatch.setattr(networks, "VIT", vit)
    torch.save(get_model(vit, num_classes=3).state_dict(), tmp_path / "vit.pth")
    found = networks.other_networks(replace(trained, materials=Materials(vit=tmp_path / "vit.pth")))
    for name in ("second run", "ResNet-50", "ViT"):
        assert 0 <= found.figures[f"accuracy, {name}"] <= 1
        assert f"error rate nearest to the hardest caption, {name}" in found.figures
    assert "error rate nearest to the hardest caption, second run by its own captions" in found.figures
    assert found.figures["AUROC of the first run's directions, second run"] > 0.5
    assert not found.notes
    assert (trained.output / "seed-0-second-run" / "failures" / "report.html").is_file()


def test_transferred__rates_by_hand(trained):
    values = np.where(np.arange(len(trained.test.y)) % 2, -1.0, 1.0)
    first = replace(trained.judged[0], values=values)
    found = networks.transferred(replace(trained, judged=[first]), values < 0, "copy")
    assert found["error rate of flagged, copy"] == 1
    assert found["error rate of others, copy"] == 0
    assert found["AUROC of the first run's directions, copy"] == 1
    assert found["accuracy, copy"] == pytest.approx(0.5, abs=0.02)


def test_load_network__of_other_weights(tmp_path):
    torch.save(get_model("shufflenet_v2_x0_5").state_dict(), tmp_path / "other.pth")
    with pytest.raises(EncoderError, match="does not hold the weights of torchvision's squeezenet1_1"):
        load_network(tmp_path / "other.pth", "squeezenet1_1")
    with pytest.raises(EncoderError, match="is not a file"):
        load_network(tmp_path / "none.pth", "squeezenet1_1")
