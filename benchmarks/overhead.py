"""Overhead of the callback per epoch of the demo, of the pictures per analysis, and the time of each stage.

    python benchmarks/overhead.py --output benchmarks/results/overhead.json

The demo's data, model, options and logger, trained with and without ``FailureModes`` in turn, each time with an empty
cache. An epoch is training and validation on 4,000 images each. The first epoch, in which the images are embedded, is
reported separately. Shares refer to the median of the other epochs with the callback, for wall time and for CPU time
(which varies less on a busy machine); stages are timed within the same runs. Pictures are drawn once at the end of the
training, with everything they need: feature attacks, null CV scores, dashboards, the HTML report, and Vega for its
charts, which a process loads once, and a machine bundles once.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from stages import STAGES, Clock, Epoch, library, stopwatches

from lightning_failures import FailureModes
from lightning_failures.bundled.digits import ColouredDigitsDataModule, DigitClassifier
from lightning_failures.callback import AdvancedOptions, DataOptions


def train(*, epochs: int, analysed: bool) -> tuple[list[Epoch], Epoch]:
    """Train as the demo does; return the times of each epoch and of the rest after the last epoch."""
    L.seed_everything(0, verbose=False)
    clock = Clock()
    library.prepare.cache_clear()  # which every process loads once; it is bundled once a machine
    options: dict[str, Any] = {"encoder": "embedded:digits", "robust_encoder": "embedded:digits", "captions": "digits"}
    options["data"] = DataOptions(metadata=("tint", "background", "stroke", "posture"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        failures = (
            [FailureModes(**options, on_error="raise", advanced=AdvancedOptions(cache_folder=folder / "cache"))]
            if analysed
            else []
        )
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=TensorBoardLogger(folder, name="coloured_digits"),
            callbacks=[clock, *failures],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        with stopwatches(clock):
            trainer.fit(DigitClassifier(), datamodule=ColouredDigitsDataModule())
    return clock.epochs, dict(clock.stages)


def medians(title: str, shares: dict[str, np.ndarray]) -> None:
    """Print the median of each stage, (n, 2)."""
    print(title)
    for name, values in shares.items():
        print("  {:<24}{:>8.2%}{:>8.2%}".format(name, *np.median(values, axis=0)))


def main() -> None:
    """Train in turn, print the shares, write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="the demo's own number")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)
    epochs = arguments.epochs
    train(epochs=1, analysed=True)  # what is compiled once a machine
    runs: dict[bool, list[tuple[list[Epoch], Epoch]]] = {True: [], False: []}
    for number in range(arguments.rounds):
        for analysed in (number % 2 == 0, number % 2 == 1):
            runs[analysed].append(train(epochs=epochs, analysed=analysed))

    seconds = {  # (rounds, epochs - 1, 2)
        kind: np.array([[row["epoch"] for row in rows[1:]] for rows, _ in found]) for kind, found in runs.items()
    }
    added = 1 - seconds[False].sum(axis=1) / seconds[True].sum(axis=1)  # (rounds, 2)
    print(f"{arguments.rounds} x {epochs} epochs with the callback and as many without, in turn; wall time, CPU time")
    for i, kind in enumerate(("wall", "CPU")):
        middle, low, high = np.median(added[:, i]), added[:, i].min(), added[:, i].max()
        print(f"  added by the callback, {kind} time: {middle:.1%} ({low:.1%} to {high:.1%})")
    usual = [np.median(run, axis=0) for run in seconds[True]]  # an epoch of each run, (2,)
    names = [name for name in STAGES if not name.strip().startswith("pictures")]
    rows = [row for found, _ in runs[True] for row in found[1:]]
    stages = [name for name in (*names, "callback") if any(name in row for row in rows)]
    shares = {name: np.array([row.get(name, np.zeros(2)) / row["epoch"] for row in rows]) for name in stages}
    medians("share of an epoch, median (wall, CPU):", shares)
    first = {
        "the first epoch": np.array(
            [found[0]["epoch"] / one for (found, _), one in zip(runs[True], usual, strict=True)]
        )
    }
    medians("of a usual epoch, with an empty cache (wall, CPU):", first)
    drawn = {
        name: np.array([after.get(name, np.zeros(2)) / one for (_, after), one in zip(runs[True], usual, strict=True)])
        for name in STAGES
        if any(name in after for _, after in runs[True])
    }
    medians("pictures, once, when the training is over, in epochs (wall, CPU):", drawn)
    bare = np.median(seconds[False], axis=(0, 1))
    inside = np.median([after["pictures"] for _, after in runs[True]], axis=0) / bare
    print("pictures in epochs of a training without the callback: {:.2%} {:.2%}".format(*inside))
    if arguments.output:
        result = {"added": added, "shares": shares, "first_epoch": first, "pictures": drawn, "pictures_bare": inside}
        result |= {"with": runs[True], "without": runs[False]}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1, default=lambda x: np.round(x, 4).tolist()) + "\n")


if __name__ == "__main__":
    main()
