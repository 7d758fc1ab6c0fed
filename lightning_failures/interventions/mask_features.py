"""MaskFeatures refits the last layer of the model without features that mislead it.

Source: Wong et al., Leveraging Sparse Linear Layers for Debuggable Deep Networks, ICML 2021, for the features; Singla
et al., Barlow, CVPR 2021, for the tags "spurious" and "overemphasised" that people give them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.types import IntArray
from lightning_failures.errors import DataError
from lightning_failures.interventions.base import (
    Decision,
    HeadExamples,
    JudgedExamples,
    LastLayer,
    Round,
    is_number,
)
from lightning_failures.interventions.head import PENALTIES, FeatureRows, fit_head
from lightning_failures.interventions.head_measures import harm, measure_heads
from lightning_failures.interventions.refit import LastLayerIntervention
from lightning_failures.sparse.debug import ALL_CLASSES, FeatureEffects, feature_effects
from lightning_failures.sparse.layer import fit_sparse_layer

RANDOM_MASKS = 3
"""Number of heads that are refitted without as many random features."""

N_LAMBDAS = 40
"""Length of the path of sparse layers, for features that cost more than they bring."""


class MaskFeatures(LastLayerIntervention):
    r"""Masks features of the penultimate layer that mislead the model, and refits the last layer without them.

    A feature is masked if people tagged it "spurious" or "overemphasised" in ``features.yaml``, under the fingerprint
    of the model; the entries are made by ``FailureModes(sparse=True)``. Tags hold for the very weights whose features
    people looked at: after further training of other layers, features have other meanings, and their entries are
    ignored. With ``costly=True`` a feature is also masked if its removal from a sparse layer raises the accuracy on the
    discovery part significantly (:meth:`~lightning_failures.sparse.FeatureEffects.worth_masking`).

    The last layer is refitted to the training set without these features, and their weights are 0. A weight of 0 masks
    a feature in a linear layer, so the model needs no hook, and any code that loads its checkpoint is masked too.

    It acts when the training has ended: the weights of the last layer are replaced in place, and the checkpoint
    ``failures/retrained.ckpt`` is written. With ``every_n_epochs`` it also acts before epochs of the training; further
    training may then raise the masked weights again.

    Refitting alone may gain, so the report holds controls: heads refitted with the same penalty with all features
    (uniform), and without as many random features (random). All are measured on the report part. The verdict compares
    the new head with the controls, on the frozen slice if that has at least 10 examples, else on all. With
    ``AdvancedOptions(auto_rollback=True)`` a new head with which accuracy on the decision part falls by more than 2
    points, significantly, is not used.

    Needs what :class:`~lightning_failures.interventions.RetrainHead` needs: a last layer ``nn.Linear`` with a bias.

    Args:
        head: Name of the last layer; None: it is found.
        features_file: YAML file with tags of features; None: that of ``PictureOptions(feature_names=...)``, else
            ``features.yaml`` in the folder of the run.
        tags: The tags of features that are masked; empty: tags are not read.
        costly: Whether features are masked that cost more correct answers than they bring.
        max_masked: Largest share of the features that may be masked, in (0, 1]: tagged features first, then those that
            cost most.
        every_n_epochs: Act before every n-th epoch from ``start_epoch`` on too. None: only at the end.
        penalties: L2 penalties > 0, from which cross-validation chooses.
        folds: Number of folds of the cross-validation.
        **schedule: ``start_epoch``, ``stop_epoch`` and ``dry_run`` of
            :class:`~lightning_failures.interventions.Intervention`; ``dry_run`` reports what masking would gain.

    Raises:
        ConfigurationError: An option outside its range.

    >>> MaskFeatures().decision_index(3), MaskFeatures(every_n_epochs=2).decision_index(3)
    (None, 1)
    """

    def __init__(
        self,
        *,
        head: str | None = None,
        features_file: str | Path | None = None,
        tags: Sequence[str] = ("spurious", "overemphasised"),
        costly: bool = True,
        max_masked: float = 0.5,
        every_n_epochs: int | None = None,
        penalties: Sequence[float] = PENALTIES,
        folds: int = 3,
        **schedule: Any,
    ) -> None:
        super().__init__(head=head, every_n_epochs=every_n_epochs, penalties=penalties, folds=folds, **schedule)
        self.features_file = features_file
        self.tags = tuple(tags)
        self.costly = costly
        self.max_masked = max_masked
        known = set(self.tags) <= {"spurious", "overemphasised"} and not isinstance(tags, str)
        self._check("tags", known, "a list out of 'spurious' and 'overemphasised'")
        self._check("costly", bool(costly) or bool(self.tags), "True without tags: nothing would be masked")
        self._check("max_masked", is_number(max_masked) and 0 < max_masked <= 1, "a share in (0, 1]")

    def decide(self, examples: JudgedExamples, round: Round) -> Decision:
        """Refit the last layer without the features that mislead it; the training examples keep their weights."""
        layer = self._read_layer(round, discovery=self.costly)

        def study() -> Decision:
            assert layer is not None  # on the first process
            tagged = round.tagged_features(layer.head.name, self.features_file) if self.tags else {}
            return self._study(layer, {j: tag for j, tag in tagged.items() if tag in self.tags}, seed=round.seed)

        decision = round.on_first(study)
        return replace(decision, weights=np.ones(len(examples.labels)))

    def _study(self, layer: LastLayer, tagged: Mapping[int, str], *, seed: int) -> Decision:
        """Choose the features, fit and measure heads; the weights of the decision are left to the caller."""
        fitting, dim = layer.fitting, layer.head.weight.shape[1]
        notes, effects = [], None
        if self.costly:
            try:
                effects = _effects(layer, seed)
            except DataError as error:
                notes.append(f"MaskFeatures cannot tell which features cost more than they bring: {error}")
        entries = _entries(tagged, effects, dim, limit=max(int(self.max_masked * dim), 1))
        masked = np.array(sorted(one["feature"] for one in entries), dtype=np.int64)
        details: dict[str, Any] = {"head": layer.head.name, "fitted_on": len(fitting.labels), "features": dim}
        details |= {"masked": entries}
        nothing = Decision(np.empty(0), (), notes=tuple(notes), details=details)
        if not len(masked):
            why = "no feature of these weights is tagged" if self.tags else "no tags are read"
            if self.costly and effects is not None:
                why += ", and none costs significantly more correct answers than it brings"
            return replace(nothing, notes=(*notes, f"MaskFeatures keeps the last layer: {why}."))

        # the new head, and the controls with the same penalty
        fit = self._fit(layer, masked, self.penalties, seed)
        new = self._new_head(layer, *fit[:2])
        penalty, rng = fit[2], np.random.default_rng(seed)
        kept = np.setdiff1d(np.arange(dim), masked)
        randoms = [rng.choice(kept, min(len(masked), len(kept)), replace=False) for _ in range(RANDOM_MASKS)]
        controls = [
            layer.with_weights(*self._fit(layer, other, [penalty], seed)[:2])
            for other in (np.empty(0, dtype=np.int64), *randoms)
        ]
        arms = {"before": [layer.head], "masked": [new], "uniform": controls[:1], "random": controls[1:]}
        measured, verdict = measure_heads(
            layer.report,
            arms,
            tested="masked",
            against=("uniform", "random"),
            without="the mask",
            seed=seed,
            on_all=True,
        )
        details |= {"penalty": penalty, "measured": measured, "verdict": verdict.to_dict()}
        found = harm(layer.decision, layer.head, new, seed=seed)
        if found is not None:
            details["dropped"] = found.sentence
            note = f"MaskFeatures keeps the last layer: {found.sentence}"
            return replace(nothing, details=details, notes=(*notes, note))
        return replace(nothing, head=new, details=details)

    def _fit(
        self, layer: LastLayer, masked: IntArray, penalties: Sequence[float], seed: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Return weight, bias and penalty of a head without some features."""
        fit = fit_head(
            MaskedRows(layer.fitting.features, masked),
            layer.fitting.labels,
            None,
            classes=len(layer.head.bias),
            penalties=penalties,
            folds=self.folds,
            groups=layer.fitting.groups,
            seed=seed,
            device=layer.device,
        )
        weight = fit.weight.copy()
        weight[:, masked] = 0.0
        return weight, fit.bias, fit.penalty


class MaskedRows:
    """Features (N, D) with some columns set to 0, read in blocks of rows.

    >>> MaskedRows(np.ones((2, 3)), np.array([1]))[0:1].tolist()
    [[1.0, 0.0, 1.0]]
    """

    def __init__(self, features: FeatureRows, masked: IntArray) -> None:
        self._features, self._masked = features, masked
        self.shape = tuple(features.shape)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        block = np.array(self._features[rows])
        block[:, self._masked] = 0
        return block


def _effects(layer: LastLayer, seed: int) -> FeatureEffects:
    """Return what the removal of each feature of a sparse layer does on the discovery part.

    Raises:
        DataError: The discovery part cannot be read again, or no sparse layer can be fitted.
    """
    found: HeadExamples | None = layer.discovery
    if found is None or not len(found.labels):
        raise DataError("the examples of the discovery part cannot be read again.")
    fitting = layer.fitting
    held = found.labels <= fitting.labels.max()
    x, y = np.asarray(found.features[0 : len(found.labels)])[held], found.labels[held]
    sparse = fit_sparse_layer(
        fitting.features, fitting.labels, validation=(x, y), n_lambdas=N_LAMBDAS, seed=seed, device=layer.device
    )
    return feature_effects(sparse, x, y)


def _entries(
    tagged: Mapping[int, str], effects: FeatureEffects | None, dim: int, *, limit: int
) -> list[dict[str, Any]]:
    """Return one entry for each masked feature: why, and what its removal alone fixes and breaks.

    Args:
        tagged: Tag of each tagged feature.
        effects: Effects of removals, the most costly features first.
        dim: D.
        limit: Largest number of entries.
    """
    counts: dict[int, tuple[int, int]] = {}
    costly: list[int] = []
    if effects is not None:
        everywhere = effects.class_index == ALL_CLASSES
        for row in np.flatnonzero(everywhere).tolist():
            counts[int(effects.feature[row])] = (int(effects.fixed[row]), int(effects.broken[row]))
        costly = effects.feature[everywhere & effects.worth_masking()].tolist()
    reasons = {j: tag for j, tag in sorted(tagged.items()) if 0 <= j < dim}
    for j in costly:
        reasons.setdefault(j, "costly")
    entries = []
    for j, reason in list(reasons.items())[:limit]:
        fixed, broken = counts.get(j, (None, None))
        entries.append({"feature": j, "reason": reason, "fixed": fixed, "broken": broken})
    return entries
