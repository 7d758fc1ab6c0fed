"""Failure directions in other spaces than CLIP's (Jain et al., ICLR 2023, B.1.6).

Directions are fitted to features of the network itself, the input of its last layer, and to features of an Inception.
These spaces have no texts, so that only the ranking of images is compared.
"""

from __future__ import annotations

import numpy as np

from lightning_failures.directions import fit_failure_directions
from lightning_failures.encoders.module import ModuleEncoder
from lightning_failures.encoders.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from lightning_failures.recipes.base import Found
from lightning_failures.recipes.figures import test_figures
from lightning_failures.recipes.parts.files import load_network
from lightning_failures.recipes.training import Trained

INCEPTION, INCEPTION_SIZE, INCEPTION_CROP = "inception_v3", 299, 299 / 342


def other_spaces(trained: Trained) -> Found:
    """Return the figures of the test set by directions in the network's own space and in that of an Inception."""
    spaces = {"own space": own_space(trained)}
    notes: tuple[str, ...] = ()
    if trained.materials.inception is None:
        notes = ("The space of an Inception was left out: give --inception FILE, the weights of torchvision.",)
    else:
        network = load_network(trained.materials.inception, INCEPTION, aux_logits=True, transform_input=True)
        spaces["Inception"] = ModuleEncoder(
            network, "avgpool", mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=INCEPTION_SIZE, crop=INCEPTION_CROP,
            interpolation="bilinear", device=trained.device, batch_size=64,
        )  # fmt: skip
    figures: dict[str, float] = {}
    for name, encoder in spaces.items():
        figures |= _figures_in(trained, encoder, name)
    scores = trained.result.directions.cv_score if trained.result.directions is not None else ()
    if len(scores):
        figures["CV score"] = float(np.mean(np.asarray(scores)))
    return Found(figures, notes=notes)


def own_space(trained: Trained) -> ModuleEncoder:
    """Return the encoder of the network's own space: the features that its last layer takes."""
    mean, std = trained.setting.statistics
    return ModuleEncoder(trained.model.net, "avgpool", mean=mean, std=std, device=trained.device)


def _figures_in(trained: Trained, encoder: ModuleEncoder, name: str) -> dict[str, float]:
    setting, validation, test = trained.setting, trained.validation, trained.test
    directions = fit_failure_directions(
        trained.embed(setting.validation, encoder), validation.y, ~validation.failed, permutations=0, seed=trained.seed
    )
    values = directions.decision_values(trained.embed(setting.test, encoder), test.y).numpy()
    found = test_figures(values, test.confidence, test.y, test.failed, setting.hard_in_test)
    figures = {f"{key}, {name}": value for key, value in found.items() if not key.endswith("by confidence")}
    if len(directions.cv_score):
        figures[f"CV score, {name}"] = float(directions.cv_score.mean())
    return figures
