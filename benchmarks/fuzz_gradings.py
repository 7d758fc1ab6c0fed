"""Random batches, step outputs, labels and class lists: graded as they are meant, or refused with the remedy.

    python benchmarks/fuzz_gradings.py --output benchmarks/results/fuzz_gradings.json

Each input is a small validation set of known truth: a task, class indices or conditions, and scores. It is written in
one of the forms that people use (tuples, lists, mappings; logits, probabilities, classes; integers, floats, booleans,
one-hot, smoothed; names in lists, dicts, arrays), cut into batches of any size, and graded. Half of the inputs are then
spoilt in one place: a label or score that is none, another shape, a list of names that does not fit. Counted:

* right: accuracy is that of the truth, to the last example
* other: a spoilt input that was graded; its accuracy is a number in [0, 1] over at most as many examples as there are
* refused: an error of this package

Anything else is a failure: an error of another kind, or an unspoilt input that is refused or graded otherwise. A second
part gives the same values to ``analyse(Grades(...))`` as a notebook would.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_failures import Grades, analyse
from lightning_failures.data.class_names import unique_class_names
from lightning_failures.errors import FailureModesError
from lightning_failures.trainer.batch_grader import BatchGrader, ReadBatch
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.index_recorder import IndexRecorderHook
from lightning_failures.trainer.logits_hook import LogitsObserver
from lightning_failures.trainer.ranks import Communicator

ODD_NUMBERS = [float("nan"), float("inf"), -1.0, 0.5, 7.0, 255.0, -100.0, 1e30, -3.5]
ODD_NAMES = [
    None,
    "",
    "cat",
    ["a"],
    ["_", ""],
    {"a": 7},
    {1: "b"},
    [3, 3, 3],
    range(4),
    {"x"},
    ["a", "b", "c", "d", "e", "f"],
]


@dataclass
class Case:
    """One validation set and its truth.

    Attributes:
        batches: (outputs, batch) of each batch.
        names: Names of the classes, in any form.
        correct: Number of predictions that are right.
        graded: Number of graded rows.
        spoilt: Whether something was changed.
    """

    batches: list[tuple[Any, Any]]
    names: Any
    correct: int
    graded: int
    spoilt: bool


class Data:
    """A dataset of a length, with names."""

    def __init__(self, names: Any, length: int) -> None:
        self.classes, self.length = names, length

    def __len__(self) -> int:
        return self.length


def multiclass(rng: random.Random, n: int) -> tuple[Tensor, Tensor, int, list[Any], bool]:
    """Return scores, labels, the number that is right, names, and whether the output is ``preds``."""
    classes = rng.randint(3, 6)
    truth = torch.tensor([rng.randrange(classes) for _ in range(n)])
    scores = torch.rand(n, classes) * 6 - 3
    right = int((scores.argmax(1) == truth).sum())
    labels: Tensor = rng.choice(
        [
            truth,
            truth.int(),
            truth.to(torch.uint8),
            truth.float(),
            truth[:, None],
            F.one_hot(truth, classes),
            F.one_hot(truth, classes).float() * 0.9 + 0.1 / classes,
        ]
    )
    is_preds = rng.random() < 0.5
    outputs = rng.choice([scores, scores.half().float(), scores.softmax(1)])
    right = int((outputs.argmax(1) == truth).sum())
    return outputs, labels, right, [f"kind {k}" for k in range(classes)], is_preds


def binary(rng: random.Random, n: int) -> tuple[Tensor, Tensor, int, list[Any], bool]:
    """Return the same for one score an example; probabilities are called ``preds``."""
    truth = torch.tensor([rng.randrange(2) for _ in range(n)])
    scores = torch.rand(n) * 6 - 3
    right = int(((scores > 0).long() == truth).sum())
    labels: Tensor = rng.choice([truth, truth.float(), truth.bool(), truth[:, None].float(), truth * 0.9 + 0.05])
    is_preds = rng.random() < 0.5
    outputs = scores.sigmoid() if is_preds else scores
    return outputs if rng.random() < 0.5 else outputs[:, None], labels, right, ["no", "yes"], is_preds


def multilabel(rng: random.Random, n: int) -> tuple[Tensor, Tensor, int, list[Any], bool]:
    """Return the same for conditions; thresholds are chosen by the callback, so that the number right is not known."""
    conditions = rng.randint(2, 4)
    truth = (torch.rand(n, conditions) < 0.5).long()
    truth[0], truth[-1] = 1, 0  # neither one-hot nor empty
    labels: Tensor = rng.choice([truth, truth.float(), truth.bool(), truth * 0.9 + 0.05])
    is_preds = rng.random() < 0.5
    scores = torch.rand(n, conditions) * 6 - 3
    return scores.sigmoid() if is_preds else scores, labels, -1, [f"finding {k}" for k in range(conditions)], is_preds


def in_form(rng: random.Random, names: list[Any]) -> Any:
    """Return names in one of the forms of datasets."""
    shuffled = list(enumerate(names))
    rng.shuffle(shuffled)
    return rng.choice(
        [
            names,
            tuple(names),
            np.array(names),
            {name: k for k, name in shuffled},
            dict(shuffled),
            [(n, "x") for n in names],
        ]
    )


def make(rng: random.Random, spoil: bool) -> Case:
    """Return a random validation set."""
    n = rng.randint(2, 24)
    outputs, labels, right, names, is_preds = rng.choice([multiclass, binary, multilabel])(rng, n)
    if spoil:
        outputs, labels, names = spoilt(rng, outputs, labels, names)
    else:
        names = in_form(rng, names)
    key, mapping = "preds" if is_preds else "logits", rng.random() < 0.5
    images = torch.rand(len(labels), 3, 4, 4)
    batches, start = [], 0
    while start < len(labels):
        rows = slice(start, start + rng.randint(1, 8))
        batch: Any = {"image": images[rows], "label": labels[rows]} if mapping else [images[rows], labels[rows], "more"]
        batches.append(({key: outputs[rows], "loss": torch.tensor(0.0)}, batch))
        start = rows.stop
    return Case(batches, names, right, labels.numel() if right < 0 else n, spoil)


def spoilt(rng: random.Random, outputs: Tensor, labels: Tensor, names: Any) -> tuple[Tensor, Tensor, Any]:
    """Return scores, labels and names of which one is wrong."""
    where = rng.randrange(5)
    if where == 0:
        labels = labels.float().clone()
        labels.view(-1)[rng.randrange(labels.numel())] = rng.choice(ODD_NUMBERS)
    elif where == 1:
        outputs = outputs.clone()
        outputs.view(-1)[rng.randrange(outputs.numel())] = rng.choice(ODD_NUMBERS)
    elif where == 2:
        labels = rng.choice([labels[..., None, None], labels[:1], labels.float() * 3.7, torch.zeros(len(labels), 4, 4)])
    elif where == 3:
        outputs = rng.choice([outputs[:1], outputs[..., None], outputs.long(), outputs.bool(), outputs.reshape(-1)])
    else:
        names = rng.choice(ODD_NAMES)
    return outputs, labels, names


def grade(case: Case) -> Grades:
    """Grade a validation set as the callback does."""
    reader, ranks = BatchReader(), Communicator()
    batch_grader = BatchGrader(reader, IndexRecorderHook(), LogitsObserver())
    data = Data(
        case.names, sum(len(batch["label"] if isinstance(batch, dict) else batch[1]) for _, batch in case.batches)
    )
    loader = type("Loader", (), {"dataset": data})()
    grader = Grader(dataset=data, class_names=None, task=None, ranks=ranks)
    start = 0
    for outputs, batch in case.batches:
        record = reader.read_graded(outputs, batch, data)
        size = 0 if record.labels is None else len(record.labels)
        read = ReadBatch(loader, record, list(range(start, start + size)), batch, record.logits is outputs.get("preds"))
        batch_grader.grade(read, batch_grader.name(read, grader), grader, None, None)  # type: ignore[arg-type]
        start += size
    return grader.grades()


def judge(case: Case) -> str:
    """Return the outcome of one case; raises what is no outcome."""
    try:
        grades = grade(case)
    except FailureModesError:
        if case.spoilt:
            return "refused"
        raise AssertionError("an input that is right was refused") from None
    if len(grades) > case.graded and not case.spoilt:
        raise AssertionError(f"{len(grades)} rows of {case.graded}")
    if bool((grades.labels < 0).any()) or bool((grades.labels >= len(grades.class_names)).any()):
        raise AssertionError("a label without a name")
    if case.spoilt:
        return "other"
    if len(grades) != case.graded or (case.correct >= 0 and int(grades.correct.sum()) != case.correct):
        raise AssertionError(f"{int(grades.correct.sum())} of {len(grades)} right, not {case.correct} of {case.graded}")
    return "right"


def notebook(rng: random.Random) -> str:
    """Give columns in any form to ``analyse``; return the outcome."""
    n = rng.randint(1, 40)
    forms = [list, np.asarray, torch.as_tensor]
    labels = np.array([rng.randrange(2) for _ in range(n)])
    columns = {
        "ids": np.arange(n),
        "labels": labels,
        "predictions": np.array([rng.randrange(2) for _ in range(n)]),
        "confidence": np.array([rng.random() for _ in range(n)], dtype=np.float32),
    }
    spoil = rng.random() < 0.5
    names: Any = ("cat", "dog")
    if spoil:
        name = rng.choice([*columns, "names"])
        if name == "names":
            names = rng.choice(ODD_NAMES)
        else:
            column = columns[name].astype(float)
            column[rng.randrange(n)] = rng.choice(ODD_NUMBERS)
            columns[name] = rng.choice([column, column[1:], column[:, None], column.astype(object)])
    given = [columns[name] if spoil else rng.choice(forms)(columns[name]) for name in columns]
    values = np.random.default_rng(n).normal(size=(n, 3)).astype("float32")
    try:
        report = analyse(Grades(*given, names), values, permutations=0).report  # type: ignore[arg-type]
    except FailureModesError:
        if spoil:
            return "refused"
        raise AssertionError("columns that are right were refused") from None
    if sum(entry.examples for entry in report.classes) < report.examples:
        raise AssertionError("examples vanish")
    return "other" if spoil else "right"


def run(inputs: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Try a number of inputs; return how often each outcome came, and the failures."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    for number in range(inputs):
        rng = random.Random(seed * 1_000_003 + number)
        torch.manual_seed(number)
        part = "analyse" if number % 5 == 4 else "batches"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = notebook(rng) if part == "analyse" else judge(make(rng, rng.random() < 0.5))
        except Exception:
            outcome = "failures"
            failures.append(f"input {number}: {traceback.format_exc(limit=-4)}")
        outcomes[f"{part}: {outcome}"] += 1
    return outcomes, failures


def names_of_anything(inputs: int, seed: int = 0) -> int:
    """Ask for class names in random structures; return how many are names."""
    rng = random.Random(seed)

    def anything(depth: int = 0) -> Any:
        kind = rng.randrange(9 if depth < 2 else 5)
        if kind < 5:
            return rng.choice(["a", 3, None, 2.5, float("nan"), ("x", "y"), b"z", True, np.int64(1)])
        several = [anything(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 5:
            return several
        if kind == 6:
            return tuple(several)
        if kind == 7:
            return {str(k): one for k, one in enumerate(several)}
        return dict(enumerate(several))

    return sum(unique_class_names(anything()) is not None for _ in range(inputs))


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes, failures = run(options.inputs, options.seed)
    outcomes["class lists: read"] = names_of_anything(options.inputs, options.seed)
    for name, count in sorted(outcomes.items()):
        print(f"{name:<24}{count:>8}")
    for text in failures[:5]:
        print(f"\n{text}", file=sys.stderr)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        content = {"inputs": options.inputs, "seed": options.seed, "outcomes": dict(sorted(outcomes.items()))}
        options.output.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
