"""The answers of the model of an early epoch on training sets and pools, for interventions that rank or flag by them.

Source: Liu et al., *Just Train Twice*, ICML 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Intervention
from lightning_failures.interventions.base import EarlyAnswers
from lightning_failures.steering.training_view import ExamplesView
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.readings import VERDICTS, LogitsSource, Reading, ScoredBatch
from lightning_failures.trainer.step_logits import StepLogits

NO_CLASSES = "Answers on single examples need predicted classes, but read_batch gives verdicts."


def model_answers(
    trainer: Trainer, reading: Reading, view: ExamplesView, ids: Tensor, *, classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the model in its current state answers on examples, and leave it as it is.

    Args:
        trainer: The Trainer.
        reading: How the scores of the validation loader were read; these are read alike.
        view: Reads the examples.
        ids: (n,) int64, dataset indices.
        classes: Number of classes.

    Returns:
        (m,) each, of the examples that can be read: int64 ids, predictions, float32 confidence in the label, and
        int64 labels.

    Raises:
        ConfigurationError: The validation set was graded by verdicts, or the model cannot be called.
    """
    if reading == VERDICTS:
        raise ConfigurationError(NO_CLASSES)
    none = torch.empty(0, dtype=torch.int64)
    found, predictions, confidence, labels = [none], [none], [torch.empty(0)], [none]
    soft, reader = reading.scale != "classes", view.reader
    step = StepLogits(trainer, reader.reader, classes=classes, dataset=reader.dataset, soft=soft)
    with step.open() as logits_of:
        for part in view.model_batches(ids.tolist()):
            assert part.record.labels is not None  # the view has checked them
            scores = logits_of(part.batch).detach().cpu()
            batch = ScoredBatch(scores, part.record.labels, LogitsSource.STEP_OUTPUT)
            rows = reading.of_form(batch).grade(batch)
            found.append(torch.tensor(part.ids))
            predictions.append(rows.predictions)
            confidence.append(rows.confidence)
            labels.append(part.record.labels.cpu().long())
    return torch.cat(found), torch.cat(predictions), torch.cat(confidence), torch.cat(labels)


def answers_of_all(
    trainer: Trainer, reading: Reading, view: ExamplesView, ranks: Communicator, *, classes: int
) -> EarlyAnswers:
    """Return the answers of the model on all examples of a view; each process asks for its share. Collective."""
    ids = torch.arange(ranks.rank, len(view), ranks.world_size)
    parts = ranks.gather_results(lambda: model_answers(trainer, reading, view, ids, classes=classes))
    confidence = np.full(len(view), np.nan, dtype=np.float32)
    wrong = np.zeros(len(view), dtype=np.bool_)
    for rows, predictions, certain, labels in parts:
        confidence[rows.numpy()] = certain.float().numpy()
        wrong[rows.numpy()] = (predictions != labels).numpy()
    return EarlyAnswers(trainer.current_epoch, confidence, wrong)


class EarlyAnswersStore:
    """Early answers by the name of the intervention that asked for them, part of the state in checkpoints."""

    def __init__(self) -> None:
        self._answers: dict[str, EarlyAnswers] = {}

    def clear(self) -> None:
        """Forget all of them."""
        self._answers.clear()

    def of(self, name: str) -> EarlyAnswers | None:
        """Return the answers of an intervention; None if it asked for none."""
        return self._answers.get(name)

    def drop(self, name: str) -> None:
        """Forget the answers of an intervention."""
        self._answers.pop(name, None)

    def keep_due(
        self,
        interventions: Mapping[str, Intervention],
        epoch: int,
        answers: Callable[[Any, Any], EarlyAnswers],
        *,
        training_size: int,
    ) -> None:
        """Ask for the answers that are due in an epoch and not yet known. Collective.

        Interventions that ask about the same examples in the same epoch share one pass. Answers of a checkpoint on a
        training set or pool of another size are replaced.

        Args:
            interventions: Name -> intervention.
            epoch: The epoch whose validation it is.
            answers: Returns the answers of the model on a pool and its view, or, given None, on the training set.
            training_size: Number of examples of the training set.
        """
        shared: dict[int, EarlyAnswers] = {}
        for name, one in interventions.items():
            if one.wants_early is None or epoch < one.wants_early:
                continue
            pool = getattr(one, "pool", None)
            known = self._answers.get(name)
            if known is not None and len(known.wrong) == (training_size if pool is None else len(pool)):
                continue
            if id(pool) not in shared:
                shared[id(pool)] = answers(pool, getattr(one, "view", None))
            self._answers[name] = shared[id(pool)]

    def to_dict(self) -> dict[str, Any]:
        """Return the field ``early`` of :class:`~.checkpoint.ControllerState`; nothing if there are no answers."""
        saved = {
            name: {
                "epoch": one.epoch,
                "confidence": torch.from_numpy(one.confidence),
                "wrong": torch.from_numpy(one.wrong),
            }
            for name, one in self._answers.items()
        }
        return {"early": saved} if saved else {}

    def load(self, saved: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> None:
        """Restore what :meth:`to_dict` has returned, under the names of today; others are dropped."""
        self._answers = {
            names[name]: EarlyAnswers(one["epoch"], one["confidence"].numpy(), one["wrong"].numpy())
            for name, one in saved.items()
            if name in names
        }
