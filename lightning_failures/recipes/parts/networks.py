"""A second run and other networks: what the first network's captions say about them (Jain et al., ICLR 2023, C.2.3).

The second run and a ResNet-50 are trained and analysed like the first network; a ViT is only evaluated, with the
weights of a file. The images nearest to the first network's captions, and those that its directions flag, are judged by
the failures of the other network.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lightning_failures.core.types import BoolArray
from lightning_failures.encoders.base import TextEncoder
from lightning_failures.recipes.base import Found
from lightning_failures.recipes.figures import Judged, nearest_figures
from lightning_failures.recipes.measure import train
from lightning_failures.recipes.parts.files import load_network
from lightning_failures.recipes.training import Trained
from lightning_failures.stats.agreement import auc

OTHER_SEED = 1000
"""Added to the seed of a run for its second run."""

LARGER, VIT = "resnet50", "vit_b_16"


def other_networks(trained: Trained) -> Found:
    """Train a second network and a ResNet-50, load a ViT, and judge the first network's findings on them."""
    figures: dict[str, float] = {}
    own: dict[str, Trained] = {}
    for name, architecture, seed in (
        ("second run", trained.setting.architecture, trained.seed + OTHER_SEED),
        ("ResNet-50", LARGER, trained.seed),
    ):
        own[name], _ = train(
            replace(trained.setting, architecture=architecture), seed=seed, encoder=trained.encoder,
            output=trained.output, epochs=trained.epochs, workers=trained.workers, materials=trained.materials,
            quick=trained.quick, name=f"seed-{trained.seed}-{name.replace(' ', '-')}",
        )  # fmt: skip
    for name, other in own.items():
        figures |= transferred(trained, other.judged[0].failed, name)
        if isinstance(trained.encoder, TextEncoder):
            mine = nearest_figures(other.result, trained.encoder, other.embeddings, other.judged)
            figures |= {f"{key}, {name} by its own captions": value for key, value in mine.items()}
    notes: tuple[str, ...] = ()
    if trained.materials.vit is None:
        notes = ("A ViT was left out: give --vit FILE, the weights of torchvision's ViT-B/16.",)
    else:
        network = load_network(trained.materials.vit, VIT, num_classes=len(trained.setting.class_names))
        figures |= transferred(trained, trained.answer(network, trained.setting.test).failed, "ViT")
    return Found(figures, notes=notes)


def transferred(trained: Trained, failed: BoolArray, name: str) -> dict[str, float]:
    """Return what the first network found, judged on the failures (n,) of another network on the test set."""
    first = trained.judged[0]
    known = np.isfinite(first.values)
    flagged = known & (first.values < 0)
    figures = {f"accuracy, {name}": float(1 - failed.mean())}
    if flagged.any() and (known & ~flagged).any():
        figures[f"error rate of flagged, {name}"] = float(failed[flagged].mean())
        figures[f"error rate of others, {name}"] = float(failed[known & ~flagged].mean())
    areas = []
    for label in np.unique(first.labels[known]):
        rows = known & (first.labels == label)
        if failed[rows].any() and not failed[rows].all():
            areas.append(auc(-first.values[rows], failed[rows]))
    if areas:
        figures[f"AUROC of the first run's directions, {name}"] = float(np.mean(areas))
    if isinstance(trained.encoder, TextEncoder):
        judged = [Judged(first.labels, first.confidence, failed, first.values)]
        near = nearest_figures(trained.result, trained.encoder, trained.embeddings, judged)
        figures |= {f"{key}, {name}": value for key, value in near.items()}
    return figures
