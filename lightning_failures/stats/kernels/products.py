"""Scalar products in the arithmetic of libsvm, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled


@compiled
def scalar_products(x: Any, out: Any) -> None:
    """Set ``out[i, j]`` to x[i] . x[j] by BLAS ``ddot`` as libsvm does; a matrix product rounds differently."""
    for i in range(len(x)):
        for j in range(i + 1):
            out[i, j] = out[j, i] = np.dot(x[i], x[j])
