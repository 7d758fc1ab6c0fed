"""The values that each method is fitted on, for the examples of the classes that this process owns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.analysis.method import FittableMethod
from lightning_failures.data.grades import Grades
from lightning_failures.data.partition import owned_rows
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.methods import Method
from lightning_failures.trainer.evaluation_pass import EvaluationPass
from lightning_failures.trainer.ranks import Communicator


def values_of_methods(
    methods: Sequence[tuple[Method, FittableMethod]],
    encoders: Mapping[str, CachedEncoder],
    evaluation: EvaluationPass,
    grades: Grades,
    sampled: NDArray[np.bool_],
    ranks: Communicator,
    attempt: Callable[[str], AbstractContextManager[Any]],
) -> dict[str, Tensor]:
    """Return the embeddings or features of each method, by its name, from whichever processes hold them. Collective.

    Methods with the same source of values share them.

    Args:
        methods: The methods, each with its fit.
        encoders: The cached encoders by the name of their source.
        evaluation: The pass that embedded the examples.
        grades: N rows.
        sampled: (N,) bool, the rows to analyse.
        ranks: The processes.
        attempt: Called with the name of a method; returns the context in which its values are gathered. After a
            suppressed error the method has none.

    Returns:
        (u, D) for the distinct ids of the rows that this process owns, ascending; no entry for a method whose encoder
        is missing or has failed.
    """
    owned = partial(owned_rows, grades, processes=ranks.world_size, sampled=sampled)
    gathered: dict[tuple[str, bool], Tensor | None] = {}
    values: dict[str, Tensor] = {}
    for method, fit in methods:
        key = (method.source, fit.by_prediction)
        cached = encoders.get(method.source)
        if cached is None and method.source != "penultimate":
            continue
        if key not in gathered:
            gathered[key] = None
            wanted = [
                torch.unique(grades.ids[owned(rank, predicted=fit.by_prediction)]) for rank in range(ranks.world_size)
            ]
            with attempt(method.name):
                gathered[key] = (
                    evaluation.penultimate.features_of(ranks, wanted)
                    if cached is None
                    else evaluation.embeddings.embeddings_of(cached, wanted)
                )
        rows = gathered[key]
        if rows is not None:
            values[method.name] = rows
    return values
