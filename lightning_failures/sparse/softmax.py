"""Multinomial cross-entropy of a linear layer: loss, gradient and curvature, as sums over blocks of features."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.types import FloatArray, IntArray
from lightning_failures.sparse.blocks import StandardizedBlocks

_ROWS_PER_CLASS = 1000
_ROWS_PER_FEATURE = 5
_RIDGE = 1e-6  # of the mean diagonal: what single precision resolves
_GRAM_CELLS_AT_ONCE = 1 << 26  # of Gram matrices that are summed in one pass, 512 MiB
_GRAM_CELLS_IN_MEMORY = 1 << 28  # of all Gram matrices, 1 GiB; more of them lie in a temporary file


@dataclass(frozen=True)
class Head:
    """A linear layer on the first features.

    Attributes:
        weight: (K, count) float64.
        bias: (K,) float64.
    """

    weight: FloatArray
    bias: FloatArray

    def widened(self, count: int) -> Head:
        """Return the same layer on the first ``count`` features; the new ones have weight 0."""
        return Head(np.pad(self.weight, ((0, 0), (0, count - self.weight.shape[1]))), self.bias)


@dataclass(frozen=True)
class Evaluation:
    """The loss at a head and its derivatives.

    Attributes:
        loss: Mean cross-entropy.
        weight: (K, count) float64, the gradient by the weights.
        bias: (K,) float64, the gradient by the biases.
        curvature: (K,) float64, the second derivatives by the biases: mean of p (1 - p).
    """

    loss: float
    weight: FloatArray
    bias: FloatArray
    curvature: FloatArray


@dataclass(frozen=True)
class Gram:
    """Curvature of the loss by the weights of one class, with its bias minimised out.

    Attributes:
        matrix: (a, a) float32, sum of v (z - c)(z - c)' with v = mass * p (1 - p), over features of the working set.
        cross: (a,) float64, sum of v z.
        total: Sum of v.
    """

    matrix: NDArray[np.float32]
    cross: FloatArray
    total: float


class Grams(dict[int, Gram]):
    """Curvature of each class. Beyond 1 GiB the matrices lie in a temporary file, which goes when they are released.

    Args:
        sizes: Class -> a, the number of features in its working set.

    Attributes:
        cells: All matrices behind each other, (sum of a * a,) float32.
    """

    def __init__(self, sizes: Mapping[int, int]) -> None:
        super().__init__()
        total = sum(a * a for a in sizes.values())
        self.cells: NDArray[np.float32]
        if total <= _GRAM_CELLS_IN_MEMORY:
            self.cells = np.empty(total, dtype=np.float32)
        else:
            with tempfile.TemporaryFile() as file:  # the map outlives the file
                if hasattr(os, "posix_fallocate"):  # a full disk is an error here, where later it ends the process
                    os.posix_fallocate(file.fileno(), 0, 4 * total)
                self.cells = np.memmap(file, dtype=np.float32, mode="w+", shape=(total,)).view(np.ndarray)
        ends = np.cumsum([a * a for a in sizes.values()])
        self._places = {k: slice(end - a * a, end) for (k, a), end in zip(sizes.items(), ends.tolist(), strict=True)}

    def add(self, k: int, matrix: FloatArray, cross: FloatArray, total: float) -> None:
        """Add the Gram matrix of a class from sums over examples, which are overwritten."""
        total = max(total, 1e-12)
        matrix -= np.outer(cross, cross / total)
        matrix[np.diag_indices_from(matrix)] += _RIDGE * np.trace(matrix) / len(matrix) + 1e-12
        place = self.cells[self._places[k]].reshape(matrix.shape)
        place[:] = matrix
        self[k] = Gram(place, cross, total)

    def stacked(self) -> NDArray[np.float32]:
        """Return the matrices of all classes, (K, a, a), where all working sets have equal size; no copy."""
        size = round((len(self.cells) / max(len(self._places), 1)) ** 0.5)
        return self.cells.reshape(len(self._places), size, size)


class SoftmaxProblem:
    """Labels, masses and standardized features of examples.

    Args:
        data: The features.
        labels: (N,) int64, 0 ... K - 1.
        mass: (N,) float64, sum 1.
        n_classes: K.
        seed: Seed of the sample of examples that Gram matrices are summed over.
        device: Device of the products.
    """

    def __init__(
        self,
        data: StandardizedBlocks,
        labels: IntArray,
        mass: FloatArray,
        n_classes: int,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.data, self.n_classes = data, n_classes
        self._device = torch.device(device)
        self._labels = torch.from_numpy(labels).to(self._device)
        self._mass = torch.from_numpy(mass).to(self._device)
        draw = np.random.default_rng(seed).random(len(labels), dtype=np.float32)
        self._draw = torch.from_numpy(draw).to(self._device)

    def evaluate(self, head: Head, count: int) -> Evaluation:
        """Return the loss at a head and its gradient by the first ``count`` features, in one pass.

        Products have the precision of the data; sums over blocks are in double precision.
        """
        loss, gradient = 0.0, np.zeros((self.n_classes, count))
        bias, curvature = np.zeros(self.n_classes), np.zeros(self.n_classes)
        for rows, z, log_p in self._log_probabilities(head, count):
            target, mass = self._labels[rows][None], self._mass[rows]
            loss -= float(log_p.gather(0, target)[0].double() @ mass)
            p = log_p.exp_()
            curvature += ((p - p * p) @ mass.to(p.dtype)).double().cpu().numpy()
            p.mul_(mass).scatter_add_(0, target, -mass.to(p.dtype)[None])
            gradient += (p @ z.T).double().cpu().numpy()
            bias += p.sum(1, dtype=torch.float64).cpu().numpy()
        return Evaluation(loss, gradient, bias, curvature)

    def grams(self, head: Head, sets: Mapping[int, IntArray], curvature: FloatArray) -> Grams:
        """Return the Gram matrix of each class on its working set.

        An example takes part with a probability proportional to v, at most 1, and is weighted by its inverse: a class
        needs no more than a thousand examples, or five per feature. A sampled matrix changes how fast the solver is,
        not its solution. Matrices are summed in double precision, as many classes in one pass as fit into 512 MiB.

        Args:
            head: Where the probabilities are evaluated.
            sets: Class -> (a,) int64, the positions of its features; not empty.
            curvature: (K,) of :class:`Evaluation` at this head.
        """
        grams = Grams({k: len(a) for k, a in sets.items()})
        together: dict[int, IntArray] = {}
        cells = 0
        for k, a in sets.items():
            if together and cells + len(a) ** 2 > _GRAM_CELLS_AT_ONCE:
                self._add_grams(grams, head, together, curvature)
                together, cells = {}, 0
            together[k] = a
            cells += len(a) ** 2
        if together:
            self._add_grams(grams, head, together, curvature)
        return grams

    def _add_grams(self, grams: Grams, head: Head, sets: Mapping[int, IntArray], curvature: FloatArray) -> None:
        """Add the Gram matrices of some classes, in one pass."""
        count = head.weight.shape[1]
        sums = {k: (np.zeros((len(a), len(a))), np.zeros(len(a)), 0.0) for k, a in sets.items()}
        positions = {k: torch.from_numpy(a).to(self._device) for k, a in sets.items()}
        for rows, z, log_p in self._log_probabilities(head, count):
            p = log_p.exp_()
            v = (p - p * p).mul_(self._mass[rows])
            draw = self._draw[rows]
            for k, a in positions.items():
                wanted = max(_ROWS_PER_CLASS, _ROWS_PER_FEATURE * len(a))
                share = (v[k] * (wanted / max(curvature[k], 1e-30))).clamp_(max=1.0)
                chosen = torch.nonzero(share > draw)[:, 0]
                weight = v[k][chosen] / share[chosen]
                z_a = z[a][:, chosen]
                scaled = z_a * weight
                matrix, cross, total = sums[k]
                matrix += (scaled @ z_a.T).double().cpu().numpy()
                cross += scaled.sum(1, dtype=torch.float64).cpu().numpy()
                sums[k] = (matrix, cross, total + float(weight.double().sum()))
        for k in sets:
            grams.add(k, *sums.pop(k))

    def _log_probabilities(self, head: Head, count: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows, features (count, n) and log-probabilities (K, n) of each block."""
        weight = torch.from_numpy(head.weight).to(self._device, self.data.dtype)
        bias = torch.from_numpy(head.bias).to(self._device, self.data.dtype)[:, None]
        known = weight.shape[1]
        for rows, z in self.data.blocks(count):
            yield rows, z, torch.log_softmax(torch.addmm(bias, weight, z[:known]), 0)
