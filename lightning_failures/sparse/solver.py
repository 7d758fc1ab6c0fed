"""The solver of the path: proximal Newton steps by class on Gram matrices of working sets, with exact gradients.

At each lambda the coordinates that the strong rule keeps form the working set. A step minimises a quadratic model of
the loss plus the penalty, for each class on its own: exact gradient, and as curvature the block of the class in the
softmax Hessian, times a scale. The Hessian of an example, diag(p) - pp', is a graph Laplacian, so it lies below twice
its diagonal: with a scale of 2 all classes may move at once. The solver starts below that and raises the scale when a
step does not descend as predicted. Anderson extrapolation over the last steps removes the slow modes that steps of
classes on their own leave. When the working set is solved, the gradient by all features shows what was left out.

Sources: Lee, Sun and Saunders, Proximal Newton-type methods, SIAM J. Optim. 2014; Tibshirani et al., Strong rules,
JRSS B 2012; Bertrand and Massias, Anderson acceleration of coordinate descent, AISTATS 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.sparse.penalty import ElasticNet
from lightning_failures.sparse.softmax import Evaluation, Grams, Head, SoftmaxProblem

KKT_TOLERANCE = 0.004
"""Largest distance from the optimality conditions, in units of lambda."""

_DECREASE_TOLERANCE = 1e-7  # the relative decrease of the objective that a further step must promise
_NOISE = 1e-8  # the relative change of the objective that single precision resolves
_MEMORY = 6  # steps that are extrapolated
_SCALE = 1.3
_MAX_SCALE_START = 3.0
_MAX_STEPS = 300
_MAX_RETRIES = 30
_MAX_SWEEPS = 200


@dataclass(frozen=True)
class Solution:
    """The solution at one lambda.

    Attributes:
        head: The layer on the features that have entered.
        objective: Mean cross-entropy plus penalty.
        residual: Largest distance from the optimality conditions over all coordinates, in units of lambda.
        objectives: The objective after each step, the last one included; increases are rounding, below 1e-8.
    """

    head: Head
    objective: float
    residual: float
    objectives: tuple[float, ...]


@dataclass(frozen=True)
class _Step:
    """A step of the model: where it leads, its direction and what it promises."""

    head: Head
    slope: float  # gradient times step
    form: float  # step times curvature times step, without scale
    decrease: float  # of the objective, as the model predicts


@dataclass
class _Extrapolation:
    """Anderson extrapolation of the last fixed-point steps."""

    steps: list[FloatArray] = field(default_factory=list)
    ends: list[FloatArray] = field(default_factory=list)

    def add(self, start: Head, end: Head) -> Head | None:
        """Return the extrapolated head, or None after the first step; coordinates that change sign are 0."""
        flat_end = _flat(end)
        self.steps = [*self.steps[1 - _MEMORY :], flat_end - _flat(start)]
        self.ends = [*self.ends[1 - _MEMORY :], flat_end]
        if len(self.steps) < 2:
            return None
        changes = np.diff(np.stack(self.steps), axis=0)
        normal = changes @ changes.T
        normal[np.diag_indices_from(normal)] += 1e-10 * np.trace(normal) + 1e-300
        mixture = np.linalg.solve(normal, changes @ self.steps[-1])
        flat = flat_end - mixture @ np.diff(np.stack(self.ends), axis=0)
        weight = flat[: end.weight.size].reshape(end.weight.shape)
        weight[np.sign(weight) != np.sign(end.weight)] = 0.0
        return Head(weight, flat[end.weight.size :])

    def restart(self) -> None:
        """Forget all steps but the last."""
        self.steps, self.ends = self.steps[-1:], self.ends[-1:]


class PathSolver:
    """Solves one lambda after another, each from the solution of the one before.

    Args:
        problem: The loss.
        priors: (K,) > 0, the share of each class: the solution without features.
        alpha: Share of the sparse part of the penalty.
        grouped: Whether a feature enters for all classes or none.
    """

    def __init__(self, problem: SoftmaxProblem, priors: FloatArray, alpha: float, grouped: bool) -> None:
        self._problem, self._alpha, self._grouped = problem, alpha, grouped
        bias = np.log(priors)
        self._head = Head(np.zeros((problem.n_classes, 0)), bias - bias.mean())
        self._at = problem.evaluate(self._head, problem.data.dim)
        self._scale = _SCALE
        largest = ElasticNet(0.0, 1.0, grouped).residual(np.zeros_like(self._at.weight), self._at.weight)
        self.lambda_max = float(largest.max(initial=0.0)) / alpha
        """The smallest lambda at which all weights are 0."""
        self._solved: list[tuple[float, Head]] = []  # the last two solutions

    def solve(self, strength: float) -> Solution:
        """Return the solution at lambda = ``strength``, not above the one before."""
        problem, count = self._problem, self._head.weight.shape[1]
        penalty = ElasticNet(strength, self._alpha, self._grouped)
        former = max(self._solved[-1][0] if self._solved else self.lambda_max, strength)
        start = self._predicted(strength)
        working = penalty.may_enter(self._at.weight, former) | (self._head.widened(problem.data.dim).weight != 0)
        objectives: list[float] = []
        while True:
            working = self._admit(working, count)
            count = working.shape[1]
            self._head = self._head.widened(count)
            objectives += self._descend(penalty, working, start and start.widened(count))
            start = None
            self._at = problem.evaluate(self._head, problem.data.dim)
            head = self._head.widened(problem.data.dim)
            residual = penalty.residual(head.weight, self._at.weight)
            worst = max(float(residual.max(initial=0.0)), float(np.abs(self._at.bias).max()))
            known = np.zeros(head.weight.shape, dtype=np.bool_)
            known[:, :count] = working
            lacking = ~known & (residual > KKT_TOLERANCE * strength)
            if not lacking.any():
                self._solved = [*self._solved[-1:], (strength, self._head)]
                objective = self._at.loss + penalty.value(self._head.weight)
                return Solution(self._head, objective, worst / strength, tuple(objectives))
            working = known | lacking | (head.weight != 0)

    def refit(self, ridge: float) -> Head:
        """Return the ridge solution on the support of the last solution, which stays as it is."""
        kept, at = self._head, self._at
        self._descend(ElasticNet(ridge, 0.0, self._grouped), kept.weight != 0, None)
        refitted, self._head, self._at = self._head, kept, at
        return refitted

    def _admit(self, working: BoolArray, count: int) -> BoolArray:
        """Move the features of a working set (K, D) to the front; return it for them alone, (K, new count)."""
        entering = count + np.flatnonzero(working[:, count:].any(axis=0))
        moved = self._problem.data.promote(entering, count)
        self._at = replace(self._at, weight=self._at.weight[:, moved])
        now = count + len(entering)
        working = np.broadcast_to(working, (self._problem.n_classes, working.shape[1]))
        return working[:, moved[:now]]

    def _predicted(self, strength: float) -> Head | None:
        """Return the head on the line through the last two solutions, in log lambda; None without two."""
        if len(self._solved) < 2:
            return None
        (before, first), (now, last) = self._solved
        if not strength < now < before:
            return None
        factor = math.log(now / strength) / math.log(before / now)
        weight = last.weight + factor * (last.weight - first.widened(last.weight.shape[1]).weight)
        weight[np.sign(weight) != np.sign(last.weight)] = 0.0
        return Head(weight, last.bias + factor * (last.bias - first.bias))

    def _descend(self, penalty: ElasticNet, working: BoolArray, start: Head | None) -> list[float]:
        """Solve the problem on a working set (K, count), and return the objectives after each step."""
        problem, count = self._problem, working.shape[1]
        sets = {k: np.flatnonzero(row) for k, row in enumerate(working) if row.any()}
        at = replace(self._at, weight=self._at.weight[:, :count])
        objective = at.loss + penalty.value(self._head.weight)
        objectives = [objective]
        if start is not None:
            there = problem.evaluate(start, count)
            if there.loss + penalty.value(start.weight) < objective:
                self._head, at, objective = start, there, there.loss + penalty.value(start.weight)
                objectives.append(objective)
        extrapolation, grams = _Extrapolation(), problem.grams(self._head, sets, at.curvature)
        for _ in range(_MAX_STEPS):
            residual = np.where(working, penalty.residual(self._head.weight, at.weight), 0.0)
            worst = max(float(residual.max(initial=0.0)), float(np.abs(at.bias).max()))
            step = self._step(penalty, at, objective, grams, sets, worst)
            if worst <= KKT_TOLERANCE * penalty.strength and step.decrease <= _DECREASE_TOLERANCE * objective:
                break
            trial = extrapolation.add(self._head, step.head)
            if trial is not None:
                there = problem.evaluate(trial, count)
                value = there.loss + penalty.value(trial.weight)
                if value <= objective - 0.3 * step.decrease:
                    self._head, at, objective = trial, there, value
                    objectives.append(value)
                    continue
                extrapolation.restart()
            first = step
            for _ in range(_MAX_RETRIES):
                there = problem.evaluate(step.head, count)
                value = there.loss + penalty.value(step.head.weight)
                ratio = 2 * (there.loss - at.loss - step.slope) / max(step.form, 1e-300)
                if value <= objective - 0.1 * step.decrease:
                    break
                if step.decrease <= _DECREASE_TOLERANCE * objective and value <= objective * (1 + _NOISE):
                    break  # too small for the precision of the objective; the gradient is more precise
                self._scale = min(max(2 * self._scale, ratio), 10 * self._scale)
                step = self._step(penalty, at, objective, grams, sets, worst)
            else:
                break
            self._head, at, objective = step.head, there, value
            objectives.append(value)
            if step is not first:  # the curvature has changed
                extrapolation = _Extrapolation()
                del grams  # before others take as much memory
                grams = problem.grams(self._head, sets, at.curvature)
            if step.decrease > _NOISE * objective:
                self._scale = max(min(max(ratio, _SCALE), _MAX_SCALE_START), self._scale / 2)
        return objectives

    def _step(
        self,
        penalty: ElasticNet,
        at: Evaluation,
        objective: float,
        grams: Grams,
        sets: Mapping[int, IntArray],
        worst: float,
    ) -> _Step:
        """Minimise the model around the current head."""
        tolerance = max(0.02 * worst, 1e-5 * penalty.strength)
        weight, bias = self._head.weight.copy(), self._head.bias.copy()
        total = np.maximum(at.curvature, 1e-12)
        slope = form = 0.0
        moves = _minimise(penalty, self._head, at, grams, sets, self._scale, tolerance)
        for k in range(len(bias)):
            pull = 0.0
            if k in moves:
                a, gram = sets[k], grams[k]
                new, move = moves[k]
                weight[k, a] = new
                total[k] = gram.total
                pull = float(gram.cross @ move)
                slope += float(at.weight[k, a] @ move)
                form += float(move @ (gram.matrix @ move)) + pull * pull / gram.total
            move_of_bias = -(at.bias[k] / self._scale + pull) / total[k]
            bias[k] += move_of_bias
            slope += at.bias[k] * move_of_bias
            form += 2 * pull * move_of_bias + total[k] * move_of_bias**2
        bias -= bias.mean()
        weight = penalty.centred(weight)
        promised = at.loss + slope + self._scale / 2 * form + penalty.value(weight)
        return _Step(Head(weight, bias), slope, form, objective - promised)


def _minimise(
    penalty: ElasticNet,
    head: Head,
    at: Evaluation,
    grams: Grams,
    sets: Mapping[int, IntArray],
    scale: float,
    tolerance: float,
) -> dict[int, tuple[FloatArray, FloatArray]]:
    """Return for each class the new weights of its working set, and their change; the biases are minimised out."""
    from lightning_failures.stats.kernels.elastic_net import descend, descend_groups

    old = {k: head.weight[k, a] for k, a in sets.items()}
    new = {k: one.astype(np.float32) for k, one in old.items()}
    start = {k: one.copy() for k, one in new.items()}
    slopes = {
        k: (at.weight[k, a] - grams[k].cross * (at.bias[k] / grams[k].total)).astype(np.float32)
        for k, a in sets.items()
    }
    numbers = [np.float32(one) for one in (scale, penalty.l1, penalty.l2, tolerance)]
    if penalty.grouped and sets:
        stacked = np.stack(list(new.values()))
        descend_groups(grams.stacked(), np.stack(list(slopes.values())), stacked, *numbers, _MAX_SWEEPS)
        new = dict(zip(sets, stacked, strict=True))
    else:
        for k in sets:
            descend(grams[k].matrix, slopes[k], new[k], *numbers, _MAX_SWEEPS)
    moves = {}
    for k in sets:
        end = np.where(new[k] != 0, old[k] + (new[k].astype(np.float64) - start[k]), 0.0)
        moves[k] = (end, end - old[k])
    return moves


def _flat(head: Head) -> FloatArray:
    return np.concatenate([head.weight.ravel(), head.bias])
