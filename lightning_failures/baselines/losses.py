"""The loss of a twin that learns from easy examples first.

Source: Nam, Cha, Ahn, Lee and Shin, *Learning from Failure*, NeurIPS 2020, section 3; the loss is that of Zhang and
Sabuncu, NeurIPS 2018. A twin of the classifier trained with it stays with what is easy, so that its
ordinary loss ranks the examples by how much they lack the easy cue.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_failures.errors import DataError


def generalised_cross_entropy(logits: Tensor, labels: Tensor, q: float = 0.7) -> Tensor:
    """Return the mean of (1 - p ** q) / q, where p is the predicted probability of the label; a scalar.

    The gradient of an example is that of the cross-entropy times p ** q: examples on which the model is right already
    count most.

    Args:
        logits: (N, K) float.
        labels: (N,) int64.
        q: In (0, 1]; near 0 it is the cross-entropy, at 1 the mean of 1 - p.

    Raises:
        DataError: ``q`` is out of range.

    >>> float(generalised_cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), q=1.0))
    0.5
    """
    if not 0 < q <= 1:
        raise DataError(f"q must be in (0, 1], got {q}.")
    log_p = F.log_softmax(logits.float(), dim=1).gather(1, labels[:, None]).squeeze(1)
    return (-torch.expm1(q * log_p) / q).mean()
