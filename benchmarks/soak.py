"""Memory, open files and disk space of a long training: 500 epochs, with the callback and without.

    python benchmarks/soak.py --output benchmarks/results/soak.json

A small classifier of coloured digits is trained with the packaged encoders, both methods, a TensorBoard and a CSV
logger, each variant in a separate process. It has a few hundred analyses, as many as a week of training. Every fifth
epoch, before its first batch, the process counts its resources. Memory is resident memory that is not mapped from
files, of the process and its loader workers, before a garbage collection; Python objects are counted after it. A slope
is that of a line through the means of twelve blocks after the warm-up, so that its standard error does not treat
consecutive epochs as independent.

Linux only, because it reads ``/proc``.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_failures import FailureModes
from lightning_failures.bundled.digits import ColouredDigitsDataModule, DigitClassifier
from lightning_failures.callback import AdvancedOptions
from lightning_failures.interventions import Upweight

VARIANTS = {
    "without": "the training alone",
    "callback": "FailureModes, both lenses",
    "interventions": "... and Upweight",
    "workers": "... and two persistent loader workers",
    "fresh workers": "... and two loader workers, new in each epoch",
    "new images": "FailureModes, validation images that change each time",
}
MEASURES = ("memory", "files", "threads", "objects", "tensors", "cache", "reports", "logs")
"""MiB; open file handles; threads; live Python objects; tensors among them; on disk, in MiB: embeddings, our own files
next to the logs, and the logs with the files of the loggers."""

STEPS = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
BLOCKS = 12
MIB = 2**20


class Jittered(torch.nn.Module):
    """A transform that never returns the same image twice."""

    def forward(self, image: Tensor) -> Tensor:
        """Add a little noise to a uint8 image."""
        return image // 2 + torch.randint(0, 8, image.shape, dtype=torch.uint8)


class Digits(ColouredDigitsDataModule):
    """A few digits of the demo with the loaders of a variant."""

    def __init__(self, variant: str, *, train_size: int, val_size: int) -> None:
        super().__init__(train_size=train_size, val_size=val_size)
        self.variant = variant

    def setup(self, stage: str | None = None) -> None:
        """Make the validation images random if the variant requires it."""
        super().setup(stage)
        if self.variant == "new images":
            self.sets["validation"].transform.transforms.insert(0, Jittered())

    def _with_workers(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        if "workers" not in self.variant:
            return loader
        return DataLoader(
            loader.dataset,
            batch_size=loader.batch_size,
            shuffle=loader.generator is not None,
            num_workers=1,
            persistent_workers=self.variant == "workers",
        )

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """As in the demo, perhaps with a worker."""
        return self._with_workers(super().train_dataloader())

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """As in the demo, perhaps with a worker."""
        return self._with_workers(super().val_dataloader())


class Watch(L.Callback):
    """Counts the resources of the process every few epochs."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.samples: list[tuple[float, ...]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count between two epochs."""
        if trainer.current_epoch % self.every == 0:
            self.samples.append((trainer.current_epoch, *count(self.folder)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count after the last epoch."""
        self.samples.append((trainer.current_epoch, *count(self.folder)))


def count(folder: Path) -> tuple[float, ...]:
    """Return the current values of all ``MEASURES``."""
    memory = sum(resident(pid) for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())))
    files = len(list(Path("/proc/self/fd").iterdir()))
    gc.collect()
    objects = gc.get_objects()
    tensors = sum(issubclass(type(one), Tensor) for one in objects)
    ours = sum(disk_space(path) for path in folder.glob("logs/*/*/failure*"))
    sizes = disk_space(folder / "cache"), ours, disk_space(folder / "logs")
    return memory, files, threading.active_count(), len(objects), tensors, *sizes


def resident(pid: int | None) -> float:
    """Return the private memory of a process in MiB: resident, not shared and not mapped from files."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()
    except FileNotFoundError:  # it has just ended
        return 0.0
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE") / MIB


def disk_space(folder: Path) -> float:
    """Return the size of the files of a folder in MiB."""
    return sum(path.stat().st_blocks * 512 for path in (folder, *folder.rglob("*")) if path.exists()) / MIB


def soak(
    variant: str, folder: Path, *, epochs: int, every: int = 5, train_size: int = 256, val_size: int | None = None
) -> dict[str, Any]:
    """Train one variant and return its samples: rows of the epoch and ``MEASURES``, and the seconds it took."""
    torch.set_num_threads(1)
    if val_size is None:
        val_size = 256 if variant == "new images" else 512  # the former are embedded in each epoch
    L.seed_everything(0, verbose=False)
    watch = Watch(folder, every)
    acting = variant in ("interventions", "workers", "fresh workers")
    modes = FailureModes(
        encoder="embedded:digits",
        robust_encoder="embedded:digits",
        captions="digits",
        interventions=[Upweight()] if acting else [],
        on_error="raise",
        advanced=AdvancedOptions(cache_folder=folder / "cache"),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=[TensorBoardLogger(folder / "logs", name="board"), CSVLogger(folder / "logs", name="table")],
        callbacks=[watch] if variant == "without" else [watch, modes],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=4,
        num_sanity_val_steps=0,
    )
    start = time.process_time()
    trainer.fit(DigitClassifier(width=4), datamodule=Digits(variant, train_size=train_size, val_size=val_size))
    return {"samples": watch.samples, "cpu_seconds": time.process_time() - start}


def slope(epochs: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return the slope per 100 epochs of a line through block means, and its standard error.

    >>> slope(range(48), [3.0 + 0.25 * epoch for epoch in range(48)])
    (25.0, 0.0)
    """
    blocks = np.array_split(np.array([epochs, values], dtype=float), min(BLOCKS, len(epochs)), axis=1)
    x, y = np.array([block.mean(axis=1) for block in blocks]).T
    x = x - x.mean()
    spread = (x**2).sum()
    rate = (x * y).sum() / spread
    left = y - y.mean() - rate * x
    error = np.sqrt((left**2).sum() / (len(blocks) - 2) / spread)
    return round(100 * float(rate), 6), round(100 * float(error), 6)


def slopes(samples: Sequence[Sequence[float]], *, warm_up: float) -> dict[str, tuple[float, float]]:
    """Return the slopes of all measures after the warm-up, which is a share of the epochs."""
    rows = np.array([row for row in samples if row[0] >= warm_up * samples[-1][0]])
    return {name: slope(rows[:, 0], rows[:, 1 + k]) for k, name in enumerate(MEASURES)}


def run(variant: str, arguments: argparse.Namespace) -> Any:
    """Run one variant in a separate process."""
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "run.json"
        command = [
            sys.executable,
            __file__,
            "--only",
            variant,
            "--epochs",
            str(arguments.epochs),
            "--output",
            str(output),
        ]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
        return json.loads(output.read_text())


def plot(runs: dict[str, Any]) -> str:
    """Draw memory and open files over the epochs as SVG, one line per variant."""
    colours = ("#555555", "#1b6ca8", "#d1495b", "#3d8361", "#8d6a9f", "#c98b1d")
    width, height, left, top = 430, 260, 60, 40
    out = []
    for number, (title, measure) in enumerate((("Memory, MiB", "memory"), ("Open files", "files"))):
        column, x0 = 1 + MEASURES.index(measure), left + number * (width + 70)
        last = max(row[0] for run in runs.values() for row in run["samples"])
        most = max(row[column] for run in runs.values() for row in run["samples"])
        high = 5 * next(step for step in STEPS if 5 * step > most)

        def place(x: float, y: float, x0: int = x0, last: float = last, high: float = high) -> str:
            return f"{x0 + x / last * width:.1f},{top + (1 - y / high) * height:.1f}"

        out.append(f'<text x="{x0}" y="{top - 16}" font-weight="bold">{title}</text>')
        for y in np.linspace(0, high, 6):
            out.append(f'<polyline fill="none" stroke="#ddd" points="{place(0, y)} {place(last, y)}"/>')
            out.append(f'<text x="{x0 - 34}" y="{float(place(0, y).split(",")[1]) + 4:.1f}">{y:.0f}</text>')
        for x in np.linspace(0, last, 6):
            at = place(x, 0).split(",")[0]
            out.append(f'<text x="{at}" y="{top + height + 18}" text-anchor="middle">{x:.0f}</text>')
        out.append(f'<text x="{x0 + width / 2}" y="{top + height + 38}" text-anchor="middle">epoch</text>')
        for run, colour in zip(runs.values(), colours, strict=False):
            path = " ".join(place(row[0], row[column]) for row in run["samples"])
            out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>')
    for i, (variant, colour) in enumerate(zip(runs, colours, strict=False)):
        out.append(
            f'<text x="{left}" y="{top + height + 62 + 16 * i}" fill="{colour}">{variant}: {VARIANTS[variant]}</text>'
        )
    size = f'width="{left + 2 * (width + 70)}" height="{top + height + 70 + 16 * len(runs)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *out, "</svg>"]) + "\n"


def table(result: dict[str, Any]) -> str:
    """Return the slopes per 100 epochs with their standard errors, and the final values."""
    lines = [f"{'per 100 epochs':15}" + "".join(f"{name:>19}" for name in MEASURES)]
    for variant, run in result["runs"].items():
        cells = (f"{rate:+.2f} +- {error:.2f}" for rate, error in run["slopes"].values())
        lines.append(f"{variant:15}" + "".join(f"{cell:>19}" for cell in cells))
    lines.append(f"{'at the end':15}")
    for variant, run in result["runs"].items():
        lines.append(f"{variant:15}" + "".join(f"{value:>19.1f}" for value in run["samples"][-1][1:]))
    return "\n".join(lines)


def main() -> None:
    """Run all variants, print the slopes, write figures and a plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--warm-up", type=float, default=0.2, help="share of the epochs that slopes leave out")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--only", choices=VARIANTS, help="one variant in this process, samples alone")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.only:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as name:
            found = soak(arguments.only, Path(name), epochs=arguments.epochs)
        arguments.output.write_text(json.dumps(found))
        return
    result: dict[str, Any] = {
        "epochs": arguments.epochs,
        "warm_up": arguments.warm_up,
        "measures": list(MEASURES),
        "torch": torch.__version__,
        "lightning": L.__version__,
        "runs": {},
    }
    for variant in arguments.variants:
        found = run(variant, arguments)
        found["slopes"] = slopes(found["samples"], warm_up=arguments.warm_up)
        result["runs"][variant] = found
        print(f"{variant}: {found['cpu_seconds']:.0f} s of CPU time", flush=True)
        if arguments.output is not None:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(result, indent=1) + "\n")
            arguments.output.with_suffix(".svg").write_text(plot(result["runs"]))
    print(table(result))


if __name__ == "__main__":
    main()
