"""What the callback adds to an epoch of the demo, with a warm cache, and where the time goes.

    python benchmarks/overhead.py --output benchmarks/results/overhead.json

The demo's data, model, options and logger, trained with and without ``FailureModes`` in turn. The first run, which
fills the cache and compiles what is compiled once a machine, is told apart. An epoch is training and validation on
4,000 images each. Shares are of the wall time of an epoch with the callback; stages are timed inside the same runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_failures import FailureModes
from lightning_failures.adapters import explaining
from lightning_failures.adapters.collector import Collector
from lightning_failures.digits import ColouredDigitsDataModule, DigitClassifier

STAGES = {
    "grade batches": (Collector, "grade"),
    "hash and look up": (Collector, "embed"),
    "gather": (Collector, "grades"),
    "read embeddings": (Collector, "embeddings"),
    "analyse": (explaining, "analyse"),
    "draw pictures": (explaining, "draw_pictures"),
    "write to sinks": (explaining, "write_all"),
    "log scalars": (FailureModes, "_log"),
}
HOOKS = (
    *("on_validation_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end"),
    *("setup", "on_fit_start", "on_sanity_check_start", "on_train_start"),
)


class Clock(L.Callback):
    """Wall time of each epoch, and within it of each stage."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []
        self.stages: dict[str, float] = defaultdict(float)
        self._start = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An epoch ends where the next one starts."""
        self._close()
        self.stages.clear()
        self._start = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """So does the last one."""
        self._close()

    def _close(self) -> None:
        if self._start:
            self.epochs.append({"epoch": time.perf_counter() - self._start} | self.stages)


@contextmanager
def stopwatches(clock: Clock) -> Iterator[None]:
    """Time the stages, and all hooks of the callback together."""

    def timed(function: Any, name: str) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                result = function(*args, **kwargs)
            finally:
                clock.stages[name] += time.perf_counter() - start
            for stage, seconds in getattr(result, "timings", {}).items() if name == "analyse" else ():
                clock.stages[stage] += seconds
            return result

        return wrapper

    with ExitStack() as stack:
        for name, (owner, attribute) in STAGES.items():
            stack.enter_context(patch.object(owner, attribute, timed(getattr(owner, attribute), name)))
        for hook in HOOKS:
            stack.enter_context(patch.object(FailureModes, hook, timed(getattr(FailureModes, hook), "callback")))
        yield


def train(folder: Path, *, epochs: int, analysed: bool) -> list[dict[str, float]]:
    """Train as the demo does; seconds of each epoch, by stage."""
    L.seed_everything(0, verbose=False)
    clock = Clock()
    options: dict[str, Any] = {"encoder": "embedded:digits", "robust_encoder": "embedded:digits", "captions": "digits"}
    failures = [FailureModes(**options, cache_folder=folder / "cache", on_error="raise")] if analysed else []
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
    return clock.epochs


def main() -> None:
    """Train in turn, print the shares, write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="the demo's own number: pictures come with the last two")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)
    epochs = arguments.epochs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = train(folder, epochs=1, analysed=True)
        runs: dict[bool, list[list[dict[str, float]]]] = {True: [], False: []}
        for number in range(arguments.rounds):
            for analysed in (number % 2 == 0, number % 2 == 1):
                runs[analysed].append(train(folder, epochs=epochs, analysed=analysed))

    plain = np.array([[row["epoch"] for row in run] for run in runs[False]])
    watched = np.array([[row["epoch"] for row in run] for run in runs[True]])
    added = [1 - p.sum() / w.sum() for p, w in zip(plain, watched, strict=True)]
    rows = [row for run in runs[True] for row in run]
    names = list(dict.fromkeys(name for row in rows for name in row if name != "epoch"))
    stages = {name: [row.get(name, 0.0) / row["epoch"] for row in rows] for name in names}
    drawn = [row for row in rows if "draw pictures" in row]
    undrawn = [row for row in rows if "draw pictures" not in row]
    print(f"with the callback against without, {arguments.rounds} x {epochs} epochs in turn:")
    print(f"  added by the callback: {np.median(added):.1%} ({min(added):.1%} to {max(added):.1%}) of the wall time")
    for told, some in (("without pictures", undrawn), ("with pictures", drawn), ("all", rows)):
        if some:
            shares = [row["callback"] / row["epoch"] for row in some]
            print(f"  inside its hooks, epochs {told}: median {np.median(shares):.1%}, mean {np.mean(shares):.1%}")
    print("share of an epoch by stage, median and mean over all epochs:")
    for name, values in stages.items():
        print(f"  {name:<18}{np.median(values):>7.2%}{np.mean(values):>8.2%}")
    once = {name: seconds / float(np.median(watched)) for name, seconds in first[0].items()}
    print(f"the very first epoch, cold cache and compilation included: {once['epoch']:.1f} x a usual one")
    if arguments.output:
        result = {"added": added, "stages": stages, "first_epoch": once, "with": runs[True], "without": runs[False]}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
