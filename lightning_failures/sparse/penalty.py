"""The elastic net penalty: its value, its optimality conditions and its screening rule, by coordinates or groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_failures.core.types import BoolArray, FloatArray


@dataclass(frozen=True)
class ElasticNet:
    """strength * (alpha * |W| + (1 - alpha) / 2 * sum of squares of W).

    |W| is the sum of absolute values or, grouped, the sum over features of the length of their weights of all classes.

    Attributes:
        strength: lambda.
        alpha: Share of the sparse part, in [0, 1]; 0 is ridge regression.
        grouped: Whether a feature enters for all classes or none.
    """

    strength: float
    alpha: float
    grouped: bool = False

    @property
    def l1(self) -> float:
        """Weight of |W|."""
        return self.strength * self.alpha

    @property
    def l2(self) -> float:
        """Weight of half the sum of squares."""
        return self.strength * (1 - self.alpha)

    def value(self, weight: FloatArray) -> float:
        """Return the penalty of weights (K, D).

        >>> weight = np.array([[3.0], [-4.0]])
        >>> ElasticNet(1.0, 1.0).value(weight), ElasticNet(1.0, 1.0, grouped=True).value(weight)
        (7.0, 5.0)
        """
        return self.l1 * float(magnitudes(weight, self.grouped).sum()) + self.l2 / 2 * float(np.square(weight).sum())

    def residual(self, weight: FloatArray, gradient: FloatArray) -> FloatArray:
        """Return how far each coordinate, or group, is from the optimality (KKT) conditions.

        Args:
            weight: (K, D).
            gradient: (K, D) of the loss.

        Returns:
            (K, D), or (1, D) for groups, >= 0: the length of the smallest subgradient.
        """
        slope = gradient + self.l2 * weight
        size = magnitudes(weight, self.grouped)
        unit = np.divide(weight, size, out=np.zeros_like(weight), where=size > 0)
        at_zero = np.maximum(magnitudes(slope, self.grouped) - self.l1, 0.0)
        return np.where(size > 0, magnitudes(slope + self.l1 * unit, self.grouped), at_zero)

    def may_enter(self, gradient: FloatArray, former: float) -> BoolArray:
        """Return which coordinates (K, D), or groups (1, D), the sequential strong rule keeps.

        Args:
            gradient: (K, D) of the loss at the solution for the strength ``former`` >= ``strength``.
            former: The former lambda.

        Source: Tibshirani et al., Strong rules for discarding predictors in lasso-type problems, 2012, equation 7.
        """
        return np.asarray(magnitudes(gradient, self.grouped) >= self.alpha * (2 * self.strength - former))

    def centred(self, weight: FloatArray) -> FloatArray:
        """Return weights (K, D) shifted by one number for each feature such that the penalty is smallest.

        A shift that is equal for all classes leaves the softmax as it is, so the loss has no curvature along it, and
        steps that move classes on their own are slow there. Without a sparse part weights stay: they have a support.

        >>> ElasticNet(1.0, 0.9).centred(np.array([[3.0, 3.0], [1.0, 0.0], [1.0, 0.0]])).tolist()
        [[2.0, 3.0], [0.0, 0.0], [0.0, 0.0]]
        """
        if self.l1 == 0:
            return weight
        if self.grouped:
            return np.asarray(weight - weight.mean(axis=0))
        classes, sums = len(weight), weight.sum(axis=0)
        push = np.abs(self.l1 * np.sign(weight).sum(axis=0) + self.l2 * sums)
        columns = np.flatnonzero(push > self.l1 * (weight == 0).sum(axis=0) * (1 + 1e-9))
        if not len(columns):
            return weight
        # the slope of the penalty rises with the shift, by 2 l1 where a weight passes 0
        passes = np.sort(-weight[:, columns], axis=0)
        ridge = self.l2 * (sums[columns] + classes * passes)
        before = self.l1 * (2 * np.arange(classes)[:, None] - classes) + ridge
        place = np.argmax(before + 2 * self.l1 >= 0, axis=0)
        at = (place, np.arange(len(columns)))
        inner = -(sums[columns] + self.l1 * (2 * place - classes) / max(self.l2, 1e-12 * self.l1)) / classes
        shifted = weight.copy()
        shifted[:, columns] += np.where(before[at] <= 0, passes[at], inner)
        return shifted


def magnitudes(values: FloatArray, grouped: bool) -> FloatArray:
    """Return absolute values (K, D), or for groups the lengths over classes (1, D).

    >>> magnitudes(np.array([[3.0, 1.0], [-4.0, 0.0]]), True).tolist()
    [[5.0, 1.0]]
    """
    return np.sqrt(np.square(values).sum(axis=0, keepdims=True)) if grouped else np.abs(values)
