"""Training on the picks of a pool (Jain et al., ICLR 2023, sections 3.2 and 4.1).

Of each class the pool gives as many examples as the setting says: those with the most negative decision values, those
that the network is least confident about, or random ones. A network is trained on the training set with each of them.
"""

from __future__ import annotations

import numpy as np
from torch.utils.data import ConcatDataset, Dataset, Subset

from lightning_failures.baselines.ranking import hardest_rows
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.recipes.base import Found
from lightning_failures.recipes.training import Trained


def filtering(trained: Trained) -> Found:
    """Train with each choice of picks, and return the accuracies on all test images and on the hard ones."""
    setting, pool = trained.setting, trained.setting.pool
    if pool is None:
        return Found(notes=("Filtering was left out: this variant has no pool.",))
    assert trained.result.directions is not None
    answers = trained.answer(trained.model, pool.plain)
    values = trained.result.directions.decision_values(trained.embed(pool.plain), answers.y).numpy()
    chance = np.random.default_rng([trained.seed, 0xF17]).random(len(values))
    rankings = {
        "direction": np.where(np.isfinite(values), -values, chance),  # a class without a direction: random ones
        "confidence": -answers.confidence,
        "chance": chance,
    }
    name, target = target_examples(trained)
    figures = _accuracies("before filtering", trained.test.failed, name, target)
    for arm, hardness in rankings.items():
        picks = picks_of(hardness, answers.y, pool.picks)
        if pool.hard is not None:
            figures[f"hard among picks by {arm}"] = float(pool.hard[picks].mean())
        added: Dataset[object] = Subset(pool.augmented, picks.tolist())
        model = trained.train(setting, ConcatDataset([setting.train, added]))
        failed = trained.answer(model, setting.test).failed
        figures |= _accuracies(f"with picks by {arm}", failed, name, target)
    if pool.hard is not None:
        figures["hard in the pool"] = float(pool.hard.mean())
    return Found(figures, notes=(f"Filtering adds {pool.picks} images a class of a pool of {len(answers.y):,}.",))


def target_examples(trained: Trained) -> tuple[str, BoolArray]:
    """Return which test examples an intervention is meant for, and how they are called: the hard or the flagged."""
    if trained.setting.hard_in_test is not None:
        return "the hard group", trained.setting.hard_in_test
    return "flagged images", np.asarray(trained.judged[0].values < 0)


def picks_of(hardness: FloatArray, labels: IntArray, count: int) -> IntArray:
    """Return the hardest examples of each class.

    >>> picks_of(np.array([1.0, 3.0, 2.0, 5.0]), np.array([0, 0, 0, 1]), 2).tolist()
    [1, 2, 3]
    """
    picks = [hardest_rows(hardness, np.flatnonzero(labels == label), count) for label in np.unique(labels)]
    return np.concatenate(picks) if picks else np.empty(0, np.int64)


def _accuracies(arm: str, failed: BoolArray, name: str, target: BoolArray) -> dict[str, float]:
    figures = {f"accuracy {arm}": float(1 - failed.mean())}
    if target.any():
        figures[f"accuracy on {name} {arm}"] = float(1 - failed[target].mean())
    return figures
