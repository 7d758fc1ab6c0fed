"""Run by test_trust_one_costs_one.py on two ranks: an example or an encoder of the second one is broken."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from lightning_failures.directions.one_class import DirectionSearch
from lightning_failures.trees import groups
from tests.helpers.broken import Edited, Marked, Texts, mark, spoil
from tests.helpers.toy import ColourEncoder, OracleClassifier, callback, loader, trainer

ODD = 37  # an odd index: the sampler gives it to the second rank


class Sturdy(OracleClassifier):
    """A model whose logits are finite even where a pixel is not."""

    def forward(self, x):
        return super().forward(x.nan_to_num())


class OnSecondRank(Marked):
    """An encoder that raises errors on the second rank only."""

    def encode_images(self, images):
        self.every = dist.get_rank() == 1
        return super().encode_images(images)


class TextsOfFirstRank(Texts):
    """An encoder whose texts fail on the second rank."""

    def encode_texts(self, texts):
        if dist.get_rank() == 1:
            raise RuntimeError("no such token")
        return super().encode_texts(texts)


def failing(label):
    """Let the fit of one class, and of its tree, raise an error."""
    search, tree = DirectionSearch.fit, groups.fit_failure_tree

    def of_class(self, problem, features):
        if problem.label == label:
            raise ArithmeticError("planted")
        return search(self, problem, features)

    def of_group(features, failed, *, ids, **options):
        if set((ids % 4).tolist()) == {label}:
            raise ArithmeticError("planted")
        return tree(features, failed, ids=ids, **options)

    DirectionSearch.fit, groups.fit_failure_tree = of_class, of_group


CASES: dict[str, Any] = {
    "NaN embedding": lambda: (OracleClassifier(), {ODD: mark}, Marked("nan")),
    "NaN pixel": lambda: (Sturdy(), {ODD: spoil}, Marked("nan")),
    "NaN logits": lambda: (OracleClassifier(), {ODD: spoil}, Marked("nan")),
    "encoder on one rank": lambda: (OracleClassifier(), {}, OnSecondRank("raise", name="second")),
    "captions on one rank": lambda: (OracleClassifier(), {}, TextsOfFirstRank()),
    # the last one, since the fault stays
    "fit of one class": lambda: (failing(1), (OracleClassifier(), {}, ColourEncoder()))[1],
}


class Analyses(Callback):
    """Counts the analyses."""

    count = 0

    def on_validation_end(self, trainer, pl_module):
        (failures,) = (one for one in trainer.callbacks if hasattr(one, "last_report"))
        report = failures.last_report
        self.count += report is not None and report.epoch == trainer.current_epoch and not trainer.sanity_checking


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for number, (case, build) in enumerate(CASES.items()):
        print(case, flush=True)  # shows where a run hangs
        model, images, encoder = build()
        failures = callback(
            encoder=encoder,
            robust_encoder=ColourEncoder("trees"),
            on_error="warn",
            cache_folder=folder / f"cache {number}",
        )
        analyses = Analyses()
        run = trainer(
            folder / str(number), failures, analyses, max_epochs=2, strategy="ddp", devices=2, num_sanity_val_steps=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run.fit(model, loader(96), DataLoader(Edited(images=images), batch_size=16))
        report = {key: value for key, value in failures.last_report.to_dict().items() if key != "timings"}
        seen = {"report": report, "analyses": analyses.count}
        (folder / f"{case} {dist.get_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
