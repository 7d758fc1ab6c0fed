"""Rankings of other methods beside those of directions and confidence (Jain et al., ICLR 2023, B.1.4).

Domino's mixture is fitted to the embeddings and verdicts of validation, with two slices a class. The twin of Learning
from Failure is trained on the same images with a loss that prefers easy ones, and ranks by its ordinary loss; so does
the network as it was after the first tenth of the epochs.
"""

from __future__ import annotations

import numpy as np

from lightning_failures.baselines import generalised_cross_entropy, hardness_by_class
from lightning_failures.baselines.ranking import domino
from lightning_failures.recipes.base import Found
from lightning_failures.recipes.figures import top_figures
from lightning_failures.recipes.training import Answers, Trained


def other_methods(trained: Trained) -> Found:
    """Return the share of the hard group among what each method ranks first in the test set."""
    setting, validation, test = trained.setting, trained.validation, trained.test
    if setting.hard_in_test is None:
        return Found(notes=("Other methods are compared where a hard group is known; here nothing is planted.",))
    twin = trained.train(setting, loss=generalised_cross_entropy)
    rankings = {
        " by Domino": hardness_by_class(
            domino,
            trained.validation_embeddings,
            validation.y,
            validation.failed,
            new=(trained.embeddings, test.y),
            seed=trained.seed,
        ),
        " by Learning from Failure": _loss(trained.answer(twin, setting.test)),
        " by an early network": _loss(trained.early_test),
    }
    known = np.isfinite(trained.judged[0].values)
    figures: dict[str, float] = {}
    for name, hardness in rankings.items():
        figures |= top_figures({name: hardness}, test.y, setting.hard_in_test, known & np.isfinite(hardness))
    return Found(figures)


def _loss(answers: Answers) -> np.ndarray:
    """Return the cross-entropy (n,) of each example."""
    return np.asarray(-np.log(np.maximum(answers.confidence, 1e-12)))
