"""Findings of sparse decision layers: which features are behind the errors, and the section of the report.

A multilabel task has a binary layer for each condition; their findings are joined.

Source: Wong, Santurkar and Madry, Leveraging Sparse Linear Layers for Debuggable Deep Networks, ICML 2021; see
:mod:`lightning_failures.sparse`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.analysis.sparse_cards import FeatureCard, HeldOut, card_entry, feature_card
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.sparse.debug import (
    ALL_CLASSES,
    NO_FEATURE,
    ClassPairs,
    FeatureEffects,
    ProblematicFeatures,
    class_pairs,
    feature_effects,
    problematic_features,
)
from lightning_failures.sparse.layer import SparseLayer
from lightning_failures.stats.intervals import share_intervals, wilson_interval

_WORK = 4e9  # operations of the effects of all features
_TOP_FEATURES = 24  # most often problematic
_TOP_MASKS = 40
_TOP_PAIRS = 24
_TOP_WEIGHTS = 12  # of each class
_TOP_ERRORS = 200
_TOP_EXAMPLES = 8  # of a feature
_TOP_CARDS = 12


@dataclass(frozen=True, eq=False)
class LayerFindings:
    """A sparse layer, and what it says about the errors of held-out examples.

    Attributes:
        layer: The layer, for the penultimate features of the model.
        first: Index of its first class among all classes: 2k for condition k of a multilabel task, else 0.
        problematic: The problematic feature of each error, with controls; classes are those of the layer.
        effects: What the removal of each feature does to all predictions; None if that would have taken too long.
        pairs: What pairs of classes share.
        model_accuracy: Accuracy of the model itself on the examples, balanced if that of the layer is.
        prevalence: Share of the examples of its last class.
        error_sources: (E,) the source of each error, or its id.
        correct_sources: (C,) the same for the correct predictions.
    """

    layer: SparseLayer
    first: int
    problematic: ProblematicFeatures
    effects: FeatureEffects | None
    pairs: ClassPairs
    model_accuracy: float
    prevalence: float
    error_sources: NDArray[Any]
    correct_sources: NDArray[Any]

    @property
    def name_index(self) -> int:
        """Index of the class that a condition is named by: present."""
        return self.first + 1


@dataclass(frozen=True, eq=False)
class SparseFindings:
    """The sparse layers of a model: one, or in a multilabel task a binary one for each condition; and their findings.

    Attributes:
        layers: The layers, each with its own findings.
        multilabel: Whether they are those of conditions.
        problematic: The problematic feature of each error of any layer, with controls; classes are those of the grades.
        effects: What the removal of each feature does to all predictions; in a multilabel task to those of one
            condition, whose class "present" is the ``class_index``. None if that would have taken too long.
        top_ids: Ids of the held-out examples that activate a feature most, for the features that are reported.
        fixed_interval: 95 % interval of the share of errors that one feature fixes; examples of one source, and
            conditions of one example, are not independent.
        broken_interval: The same for the share of correct predictions that are broken.
        cards: The features most often problematic, each with examples of the two classes that it confuses most.
    """

    layers: tuple[LayerFindings, ...]
    multilabel: bool
    problematic: ProblematicFeatures
    effects: FeatureEffects | None
    top_ids: dict[int, tuple[int, ...]]
    fixed_interval: tuple[float, float]
    broken_interval: tuple[float, float]
    cards: tuple[FeatureCard, ...] = ()

    @property
    def layer(self) -> SparseLayer:
        """The layer; in a multilabel task that of the first condition."""
        return self.layers[0].layer

    @property
    def pairs(self) -> ClassPairs | None:
        """What pairs of classes share; None in a multilabel task, whose conditions are not confused."""
        return None if self.multilabel else self.layers[0].pairs


def examine(layer: SparseLayer, held_out: HeldOut, seed: int, *, first: int = 0, n_layers: int = 1) -> LayerFindings:
    """Ask each error of a layer which feature did it, and each feature what it costs.

    Args:
        layer: The layer.
        held_out: The examples, with the classes of the layer.
        seed: Seed of the controls and samples.
        first: Index of the first class of the layer among all classes.
        n_layers: Number of layers that share the time for effects.
    """
    x, y, ids = held_out.x, held_out.labels, held_out.ids
    problematic = problematic_features(layer, x, y, ids=ids, seed=seed)
    chosen = _examples_of_effects(layer, held_out, seed, _WORK / n_layers)
    sources = ids if held_out.sources is None else held_out.sources
    right = np.isin(ids, problematic.correct_ids)
    return LayerFindings(
        layer,
        first,
        problematic,
        None if chosen is None else feature_effects(layer, x[chosen], y[chosen]),
        class_pairs(layer, x, y),
        _accuracy(held_out.predictions == y, y, balanced=layer.effective is not None),
        float((y == len(layer.bias) - 1).mean()),
        sources[~right],
        sources[right],
    )


def _examples_of_effects(layer: SparseLayer, held_out: HeldOut, seed: int, work: float) -> IntArray | None:
    """Return the rows that effects of features are counted on: a sample that takes not too long, or None.

    Where the accuracy is balanced, all classes have the same number of rows, so that counts are balanced too.
    """
    used = layer.weight != 0
    removals = int(used.sum()) + int(used.any(0).sum())
    affordable = int(work / max(removals * len(used), 1))  # rows
    if affordable < min(len(held_out), 1000):
        return None
    order = np.argsort(stable_hash(held_out.ids.astype(np.int64), seed), kind="stable")
    if layer.effective is None:
        return order[:affordable]
    classes, counts = np.unique(held_out.labels, return_counts=True)
    size = min(int(counts.min()), affordable // len(classes))
    return np.concatenate([order[held_out.labels[order] == k][:size] for k in classes])


def _accuracy(right: BoolArray, labels: IntArray, *, balanced: bool) -> float:
    if not balanced:
        return float(right.mean())
    return float(np.mean([right[labels == k].mean() for k in np.unique(labels)]))


def join_findings(layers: Sequence[LayerFindings], held_out: HeldOut, *, multilabel: bool = False) -> SparseFindings:
    """Join the findings of the layers of a model.

    Args:
        layers: At least one.
        held_out: All held-out examples.
        multilabel: Whether they are binary layers of conditions.
    """
    problematic = _joined_features(layers, multilabel=multilabel)
    effects = _joined_effects(layers) if multilabel else layers[0].effects
    shown = {*_most_problematic(problematic)[0][:_TOP_FEATURES].tolist()}
    for one in layers:
        for k in range(int(multilabel), len(one.layer.bias)):
            shown.update(_leading_features(one.layer, k)[:_TOP_WEIGHTS].tolist())
    if effects is not None:
        shown.update(effects.feature[effects.worth_masking()][:_TOP_MASKS].tolist())
    ids, first = np.unique(held_out.ids, return_index=True)
    x = held_out.features[held_out.place[first]]
    top_ids = {
        j: tuple(int(i) for i in ids[np.argsort(-x[:, j], kind="stable")[:_TOP_EXAMPLES]]) for j in sorted(shown)
    }
    clustered = multilabel or held_out.sources is not None
    return SparseFindings(
        tuple(layers),
        multilabel,
        problematic,
        effects,
        top_ids,
        _interval(problematic.fixed, np.concatenate([one.error_sources for one in layers]) if clustered else None),
        _interval(problematic.broken, np.concatenate([one.correct_sources for one in layers]) if clustered else None),
        _cards(layers, problematic, held_out, multilabel=multilabel),
    )


def _cards(
    layers: Sequence[LayerFindings], problematic: ProblematicFeatures, held_out: HeldOut, *, multilabel: bool
) -> tuple[FeatureCard, ...]:
    """Return the cards of the features most often problematic, each for the pair of classes that it confuses most."""
    cards = []
    for feature in _most_problematic(problematic)[0][:_TOP_CARDS].tolist():
        of_feature = problematic.feature == feature
        pairs = zip(problematic.labels[of_feature].tolist(), problematic.predictions[of_feature].tolist(), strict=True)
        (label, prediction), _ = Counter(pairs).most_common(1)[0]
        first = 2 * (label // 2) if multilabel else 0
        found = next(one for one in layers if one.first == first)
        rows = held_out.of_condition(label // 2) if multilabel else held_out
        cards.append(feature_card(found.layer, rows, feature, (label - first, prediction - first), first=first))
    return tuple(cards)


def _joined_features(layers: Sequence[LayerFindings], *, multilabel: bool) -> ProblematicFeatures:
    """Return the problematic features of all layers, with the classes of the grades.

    A random feature of any condition does nothing if the condition of the error does not use it.
    """
    if not multilabel:
        return layers[0].problematic
    used = [(one.layer.weight != 0).any(0) for one in layers]
    n_any = max(int(np.logical_or.reduce([mask.numpy() for mask in used]).sum()), 1)
    found = [one.problematic for one in layers]
    offsets = [one.first for one in layers]
    return ProblematicFeatures(
        ids=np.concatenate([one.ids for one in found]),
        labels=np.concatenate([one.labels + first for one, first in zip(found, offsets, strict=True)]),
        predictions=np.concatenate([one.predictions + first for one, first in zip(found, offsets, strict=True)]),
        feature=np.concatenate([one.feature for one in found]),
        gain=np.concatenate([one.gain for one in found]),
        fixed=np.concatenate([one.fixed for one in found]),
        random_used=np.concatenate([one.random_used for one in found]),
        random_any=np.concatenate(
            [one.random_used * (int(mask.sum()) / n_any) for one, mask in zip(found, used, strict=True)]
        ),
        correct_ids=np.concatenate([one.correct_ids for one in found]),
        broken=np.concatenate([one.broken for one in found]),
    )


def _joined_effects(layers: Sequence[LayerFindings]) -> FeatureEffects | None:
    """Return what the removal of each feature does to each condition, the most costly first; None if none is known."""
    known = [(one, one.effects, one.effects.class_index == ALL_CLASSES) for one in layers if one.effects is not None]
    if not known:
        return None
    effects = [found for _, found, _ in known]

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(found, name)[rows] for _, found, rows in known])

    order = np.lexsort((-joined("interval")[:, 0], -joined("effect")))
    return FeatureEffects(
        feature=joined("feature")[order],
        class_index=np.concatenate([np.full(int(rows.sum()), one.name_index) for one, _, rows in known])[order],
        fixed=joined("fixed")[order],
        broken=joined("broken")[order],
        effect=joined("effect")[order],
        interval=joined("interval")[order],
        p_value=joined("p_value")[order],
        examples=sum(found.examples for found in effects),
    )


def _interval(hits: BoolArray, sources: NDArray[Any] | None) -> tuple[float, float]:
    """Return the 95 % interval of a share, at the effective number of examples."""
    numbers = None if sources is None else np.unique(sources, return_inverse=True)[1]
    return share_intervals(hits.astype(np.int64), 2, numbers)[1]


def sparse_summary(found: SparseFindings) -> dict[str, float]:
    """Return the aggregates that are logged; undefined ones are absent."""
    values = {
        "accuracy": _mean([one.layer.accuracy for one in found.layers]),
        "features_per_class": _mean([one.layer.features_per_class for one in found.layers]),
        "fixed_by_one_feature": found.problematic.fixed_rate,
        "broken_by_one_feature": found.problematic.broken_rate,
    }
    return {f"sparse/{name}": value for name, value in values.items() if np.isfinite(value)}


def _most_problematic(found: ProblematicFeatures) -> tuple[IntArray, IntArray]:
    """Return the features that are behind errors, those with most errors first, and their numbers of errors."""
    features, counts = np.unique(found.feature[found.feature != NO_FEATURE], return_counts=True)
    order = np.lexsort((features, -counts))
    return features[order], counts[order]


def _leading_features(layer: SparseLayer, k: int) -> IntArray:
    """Return the features of class k, the largest standardized weight first."""
    scaled = (layer.weight[k] * layer.std).abs().numpy()
    used = np.flatnonzero(scaled)
    return np.asarray(used[np.argsort(-scaled[used], kind="stable")])


def sparse_section(found: SparseFindings, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the findings as plain values for ``report.json``; lists hold the most important entries.

    Accuracies and numbers of features of a multilabel task are means over its conditions, each of which has an entry of
    its own in ``conditions``. The curve has a point for each value of lambda / the largest lambda, as far as the
    paths of all conditions go.

    Args:
        found: The findings.
        class_names: K names.
    """
    problematic = found.problematic
    layers = [one.layer for one in found.layers]
    errors, right = len(problematic.ids), len(problematic.correct_ids)
    conditions = [_condition_entry(one, class_names) for one in found.layers] if found.multilabel else []
    return {
        "features": layers[0].weight.shape[1],
        "held_out": sum(one.held_out for one in layers),
        "accuracy": _mean([one.accuracy for one in layers]),
        "accuracy_interval": None if found.multilabel else _plain(found.layer.accuracy_interval),
        "dense_accuracy": _mean([one.dense_accuracy for one in layers]),
        "best_accuracy": _mean([float(one.curve.accuracy.max()) for one in layers]),
        "model_accuracy": _mean([one.model_accuracy for one in found.layers]),
        "features_per_class": _mean([one.features_per_class for one in layers]),
        "used_features": int(np.logical_or.reduce([(one.weight != 0).any(0).numpy() for one in layers]).sum()),
        "chosen": None if found.multilabel else found.layer.index,
        "curve": _curve(layers, relative=found.multilabel),
        "conditions": conditions,
        "errors_examined": errors,
        "correct_examined": right,
        "fixed": _rate(problematic.fixed_rate, errors, found.fixed_interval),
        "random_used": _rate(problematic.random_used_rate, errors),
        "random_any": _rate(problematic.random_any_rate, errors),
        "broken": _rate(problematic.broken_rate, right, found.broken_interval),
        "problematic": _problematic_entries(found, class_names),
        "errors": _error_entries(problematic, class_names),
        "classes": _class_entries(found, class_names),
        "worth_masking": _masking_entries(found.effects, class_names),
        "pairs": [] if found.pairs is None else _pair_entries(found.pairs, class_names),
        "pairs_correlation": {
            "shared": None if found.pairs is None else _number(found.pairs.shared_rank_correlation),
            "weights": None if found.pairs is None else _number(found.pairs.weight_rank_correlation),
        },
        "top_ids": {str(feature): list(ids) for feature, ids in found.top_ids.items()},
        "cards": [card_entry(one, class_names) for one in found.cards],
    }


def _curve(layers: Sequence[SparseLayer], *, relative: bool) -> list[dict[str, Any]]:
    """Return the mean features and accuracy of the layers, for each value of lambda that all paths have."""
    length = min(len(one.curve.lambdas) for one in layers)
    lambdas = layers[0].curve.lambdas[:length]
    strengths = lambdas / lambdas[0] if relative else lambdas
    return [
        {
            "lambda": strength,
            "features_per_class": _mean([float(one.curve.features_per_class[at]) for one in layers]),
            "accuracy": _mean([float(one.curve.accuracy[at]) for one in layers]),
        }
        for at, strength in enumerate(strengths.tolist())
    ]


def _condition_entry(found: LayerFindings, names: Sequence[str]) -> dict[str, Any]:
    """Return the layer of a condition: how good it is, and the errors that one feature fixes."""
    layer, problematic = found.layer, found.problematic
    errors, right = len(problematic.ids), len(problematic.correct_ids)
    return {
        "name": names[found.name_index],
        "prevalence": found.prevalence,
        "balanced": layer.effective is not None,
        "held_out": layer.held_out,
        "accuracy": layer.accuracy,
        "accuracy_interval": _plain(layer.accuracy_interval),
        "dense_accuracy": layer.dense_accuracy,
        "best_accuracy": float(layer.curve.accuracy.max()),
        "model_accuracy": found.model_accuracy,
        "features": int((layer.weight[1] != 0).sum()),
        "chosen": layer.index,
        "curve": _curve([layer], relative=False),
        "false_positives": int((problematic.labels == 0).sum()),
        "false_negatives": int((problematic.labels == 1).sum()),
        "fixed": _rate(problematic.fixed_rate, errors, _interval(problematic.fixed, found.error_sources)),
        "random_used": _rate(problematic.random_used_rate, errors),
        "broken": _rate(problematic.broken_rate, right, _interval(problematic.broken, found.correct_sources)),
    }


def _problematic_entries(found: SparseFindings, names: Sequence[str]) -> list[dict[str, Any]]:
    problematic = found.problematic
    entries = []
    features, counts = _most_problematic(problematic)
    for feature, count in zip(features[:_TOP_FEATURES].tolist(), counts.tolist(), strict=False):
        of_feature = problematic.feature == feature
        pairs = Counter(
            zip(problematic.labels[of_feature].tolist(), problematic.predictions[of_feature].tolist(), strict=True)
        )
        by_gain = np.argsort(-problematic.gain[of_feature], kind="stable")
        error_ids = dict.fromkeys(int(i) for i in problematic.ids[of_feature][by_gain])
        entries.append(
            {
                "feature": feature,
                "errors": count,
                "share": count / max(len(problematic.ids), 1),
                "fixed": int(problematic.fixed[of_feature].sum()),
                "pairs": [
                    {"label": names[label], "prediction": names[prediction], "count": number}
                    for (label, prediction), number in pairs.most_common(5)
                ],
                "error_ids": list(error_ids)[:_TOP_EXAMPLES],
            }
        )
    return entries


def _error_entries(found: ProblematicFeatures, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the errors with the largest gain first."""
    order = np.argsort(-found.gain, kind="stable")[:_TOP_ERRORS]
    return [
        {
            "id": int(found.ids[e]),
            "label": names[int(found.labels[e])],
            "prediction": names[int(found.predictions[e])],
            "feature": int(found.feature[e]) if found.feature[e] != NO_FEATURE else None,
            "gain": float(found.gain[e]),
            "fixed": bool(found.fixed[e]),
        }
        for e in order
    ]


def _class_entries(found: SparseFindings, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the leading features of each class; of a condition those of its presence, which speak against absence."""
    return [
        {
            "name": names[one.first + k],
            "features": int((one.layer.weight[k] != 0).sum()),
            "weights": [
                {"feature": j, "weight": float(one.layer.weight[k, j] * one.layer.std[j])}
                for j in _leading_features(one.layer, k)[:_TOP_WEIGHTS].tolist()
            ],
        }
        for one in found.layers
        for k in range(int(found.multilabel), len(one.layer.bias))
    ]


def _masking_entries(effects: FeatureEffects | None, names: Sequence[str]) -> list[dict[str, Any]] | None:
    if effects is None:
        return None
    rows = np.flatnonzero(effects.worth_masking())[:_TOP_MASKS]
    return [
        {
            "feature": int(effects.feature[row]),
            "class": None if effects.class_index[row] == ALL_CLASSES else names[int(effects.class_index[row])],
            "fixed": int(effects.fixed[row]),
            "broken": int(effects.broken[row]),
            "effect": float(effects.effect[row]),
            "interval": _plain(effects.interval[row]),
            "p_value": float(effects.p_value[row]),
        }
        for row in rows
    ]


def _pair_entries(pairs: ClassPairs, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs with most confusions."""
    order = np.lexsort((-pairs.correlation, -pairs.confusions))[:_TOP_PAIRS]
    return [
        {
            "first": names[int(pairs.first[p])],
            "second": names[int(pairs.second[p])],
            "shared": int(pairs.shared[p]),
            "correlation": float(pairs.correlation[p]),
            "confusions": int(pairs.confusions[p]),
        }
        for p in order
        if pairs.confusions[p] > 0
    ]


def _rate(rate: float, n: int, interval: tuple[float, float] | None = None) -> dict[str, Any]:
    """Return a share of n examples with its 95 % interval; by default that of independent examples."""
    if not n:
        return {"rate": None, "interval": None}
    return {"rate": rate, "interval": _plain(interval or wilson_interval(rate * n, n))}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _plain(values: FloatArray | tuple[float, float]) -> list[float]:
    return [float(value) for value in values]
