"""Reference solutions in double precision, and data with planted features."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression


def planted(n, d, classes, *, per_class=3, seed=0, correlation=0.3, strength=2.0):
    """Draw features (n, d), labels of a sparse softmax layer, and its weights (classes, d)."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 4)) @ rng.normal(size=(4, d)) / 2
    x = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.normal(size=(n, d))
    weight = np.zeros((classes, d))
    for k in range(classes):
        weight[k, rng.choice(d, per_class, replace=False)] = strength * rng.choice([-1, 1], per_class)
    logits = x @ weight.T
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    labels[:classes] = np.arange(classes)
    return x, labels, weight


def standardized(x, path):
    """Return the features as the path standardizes them."""
    std = path.std.double().numpy()
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
    return (np.asarray(x, dtype=np.float64) - path.mean.double().numpy()) * scale


def head_of(path, index):
    """Return weights and biases on standardized features, float64."""
    weight, bias = (one.double().numpy() for one in path.layer(index))
    return weight * path.std.double().numpy(), bias + weight @ path.mean.double().numpy()


def objective(z, y, weight, bias, strength, alpha, *, mass=None, grouped=False):
    """Return the penalised mean cross-entropy in double precision."""
    mass = np.full(len(y), 1 / len(y)) if mass is None else mass / mass.sum()
    loss = -(mass * log_softmax(z @ weight.T + bias, axis=1)[np.arange(len(y)), y]).sum()
    sizes = np.sqrt((weight**2).sum(axis=0)) if grouped else np.abs(weight)
    return loss + strength * (alpha * sizes.sum() + (1 - alpha) / 2 * (weight**2).sum())


def kkt_residual(z, y, weight, bias, strength, alpha):
    """Return the largest distance from the optimality conditions, in units of lambda, in double precision."""
    p = np.exp(log_softmax(z @ weight.T + bias, axis=1))
    p[np.arange(len(y)), y] -= 1
    slope = p.T @ z / len(y) + strength * (1 - alpha) * weight
    active = np.abs(slope + strength * alpha * np.sign(weight))
    residual = np.where(weight != 0, active, np.maximum(np.abs(slope) - strength * alpha, 0))
    return max(residual.max(), np.abs(p.mean(axis=0)).max()) / strength


def saga(z, y, strength, alpha, *, tol=1e-10):
    """Return weights and biases of scikit-learn's solver."""
    model = LogisticRegression(
        penalty="elasticnet", solver="saga", l1_ratio=alpha, C=1 / (strength * len(y)), tol=tol, max_iter=50_000
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer releases infer the penalty
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(z, y)
    if len(model.coef_) == 1:  # two classes: the symmetric softmax has half the weights
        return np.concatenate([-model.coef_, model.coef_]) / 2, np.array([-1, 1]) * model.intercept_ / 2
    return model.coef_, model.intercept_
