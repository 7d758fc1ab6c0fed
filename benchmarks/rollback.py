"""How often does automatic rollback undo interventions without an effect, and how often does it undo harm?

    python benchmarks/rollback.py                  # --quick for a tenth of the histories and 4 trainings of each kind

1. Simulated histories of accuracy: a wobble with a standard deviation of 0.02 or 0.08 between epochs, after some epochs
   of history, with and without a training that still improves, and with a harm of 10 points from the first treated
   epoch on. Counted: trainings of 20 treated epochs in which a fall is found, and harm that is found within 5 epochs.
   The former rule, which compared every epoch with the one before the start by a bootstrap of 200 examples, is counted
   beside it.
2. Real trainings with the callback, on a module whose answers wobble as told and that no intervention can change.

Writes a table to stdout and figures to JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_failures import FailureModes
from lightning_failures.callback import AdvancedOptions
from lightning_failures.interventions import Upweight
from lightning_failures.interventions.verdicts import should_roll_back
from lightning_failures.interventions.wobble import measure_fall

Floats = NDArray[np.float64]
WOBBLES = (0.02, 0.08)
HISTORIES = (1, 2, 3, 5, 10)
HARM = 0.1
WITHIN = 5  # epochs in which harm should be found
EPOCHS = 20
FIRST_SEED = 300  # of the real trainings: thresholds were set with the seeds below
EXAMPLES = 200  # of the decision part, for the former rule
CLASSES = 4
TRENDS = {
    "flat": lambda epoch: 0.0 * epoch,
    "half a point an epoch": lambda epoch: 0.005 * epoch,
    "saturating": lambda epoch: -0.3 * np.exp(-epoch / 3),
}


# -- simulated histories -----------------------------------------------------------------------------------------------


def found_at(before: Floats, since: Floats) -> int:
    """Return the look, from 1, at which a fall is found; 0 if it is not."""
    for look in range(1, len(since) + 1):
        if measure_fall(before, since[:look]).is_significant:
            return look
    return 0


def found_formerly(before: Floats, since: Floats, rng: np.random.Generator) -> bool:
    """Return whether the former rule, one frozen moment and a bootstrap, finds a fall at any look."""
    rank = rng.permutation(EXAMPLES) / EXAMPLES
    was = rank < before[-1]
    return any(should_roll_back(was, rank < accuracy, resamples=200).outcome == "hurt" for accuracy in since)


def simulated(trainings: int) -> list[dict[str, Any]]:
    """Return the rates for each trend, wobble and length of history."""
    rows = []
    for trend, curve in TRENDS.items():
        for wobble in WOBBLES:
            for history in HISTORIES:
                rng = np.random.default_rng([history, int(1000 * wobble)])
                level = 0.7 + curve(np.arange(history + EPOCHS, dtype=np.float64))
                false, harm, former = 0, 0, 0
                for number in range(trainings):
                    accuracy = level + rng.normal(0, wobble, len(level))
                    before, since = accuracy[:history], accuracy[history:]
                    false += found_at(before, since) > 0
                    harm += found_at(before, since[:WITHIN] - HARM) > 0
                    if number < trainings // 20:
                        former += found_formerly(before, since, rng)
                rates = {
                    "false_alarms": false / trainings,
                    "harm_found": harm / trainings,
                    "false_alarms_formerly": former / (trainings // 20),
                }
                rows.append({"trend": trend, "wobble": wobble, "history": history, **rates})
                print(
                    f"{trend:<22} wobble {wobble:.2f}, history {history:>2}:"
                    f" false alarms {rates['false_alarms']:.3f} (formerly {rates['false_alarms_formerly']:.2f}),"
                    f" harm found {rates['harm_found']:.3f}",
                    flush=True,
                )
    return rows


# -- real trainings ----------------------------------------------------------------------------------------------------


class MeanColour:
    """An encoder that embeds an image by its mean colour."""

    name, fingerprint, dim = "mean colour", "mean colour of the rollback benchmark", 4

    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, 4)."""
        means = images.float().mean((2, 3)).cpu() - 0.5
        return F.normalize(torch.cat([means, torch.full((len(means), 1), 0.1)], 1), dim=1)


class Wobbling(L.LightningModule):
    """Right on an image if its difficulty is below the accuracy of the epoch; training changes nothing.

    Args:
        wobble: Standard deviation of the accuracy between epochs.
        harm: Fall of the accuracy from epoch ``start`` on.
        start: First treated epoch.
        seed: Seed of the wobble.
    """

    def __init__(self, wobble: float, harm: float, start: int, seed: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        offsets = np.random.default_rng(seed).normal(0, wobble, 100)
        offsets[start:] -= harm
        self.offsets = offsets.tolist()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits; pixels of the first row hold the label and the difficulty of an image."""
        label = (x[:, 0, 0, 0] * 255).round().long()
        right = 3 * x[:, 1, 0, 0] - 1 < 0.5 + self.offsets[self.current_epoch]
        answer = torch.where(right, label, (label + 1) % CLASSES)
        return 4.0 * F.one_hot(answer, CLASSES).float() + 0 * self.w

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Train nothing."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Answer."""
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Use plain descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def images(size: int, seed: int) -> TensorDataset:
    """Return images of 4 classes, of which half are dark: these are mostly too difficult, the others hardly ever.

    Difficulties are uniform over a length of 1, so accuracy moves as much as what they are compared with.
    """
    rng = np.random.default_rng(seed)
    labels, dark = rng.integers(0, CLASSES, size), rng.random(size) < 0.5
    difficulty = rng.random(size) + np.where(dark, 0.2, -0.25)
    x = rng.random((size, 3, 8, 8)) * 0.3 + np.where(dark, 0.1, 0.6)[:, None, None, None]
    x[:, 0, 0, 0], x[:, 1, 0, 0] = labels / 255, (difficulty + 1) / 3
    return TensorDataset(torch.from_numpy(x.astype("float32")), torch.from_numpy(labels))


def training(wobble: float, harm: float, start: int, seed: int) -> dict[str, Any]:
    """Train once, with an intervention from epoch ``start`` on; return when it was undone, and the accuracies."""
    with tempfile.TemporaryDirectory() as place:
        modes = FailureModes(
            encoder=MeanColour(),
            captions=None,
            pictures=False,
            interventions=[Upweight(factor=2.0, triage=False, start_epoch=start)],
            on_error="raise",
            advanced=AdvancedOptions(
                auto_rollback=True, permutations=99, cache_folder=Path(place) / "cache", seed=seed
            ),
        )
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=start + (WITHIN if harm else EPOCHS // 2),
            callbacks=[modes],
            logger=False,
            default_root_dir=place,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        L.seed_everything(seed, verbose=False)
        module = Wobbling(wobble, harm, start, seed)
        trainer.fit(
            module, DataLoader(images(160, seed), batch_size=80), DataLoader(images(1600, 1000 + seed), batch_size=400)
        )
        assert modes.last_report is not None
        (entry,) = modes.last_report["interventions"]
        return {
            "wobble": wobble,
            "harm": harm,
            "start": start,
            "seed": seed,
            "began": entry["began"],
            "undone": None if entry["rolled_back"] is None else entry["rolled_back"]["epoch"],
            "accuracy": [round(point["decision/accuracy"], 3) for point in entry["trend"]],
        }


def real(trainings: int) -> list[dict[str, Any]]:
    """Return the real trainings of every kind."""
    runs = []
    for start in (1, 4):
        for wobble, harm in ((0.02, 0.0), (0.08, 0.0), (0.02, HARM)):
            some = [training(wobble, harm, start, FIRST_SEED + seed) for seed in range(trainings)]
            undone = sum(run["undone"] is not None for run in some)
            print(f"start {start}, wobble {wobble:.2f}, harm {harm:.1f}: {undone} of {trainings} undone", flush=True)
            runs += some
    return runs


def main() -> None:
    """Run both parts, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "rollback.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    start = time.perf_counter()
    found = {
        "simulated": simulated(200 if arguments.quick else 2000),
        "real": real(4 if arguments.quick else 20),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
