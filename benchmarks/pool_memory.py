"""Memory by the size of a pool: ``lightning-failures embed`` against common alternatives.

    python benchmarks/pool_memory.py --output benchmarks/results/pool_memory.json

The images of the pool are generated on demand, so that the pool itself takes no memory; a fixed random layer embeds
them in 512 dimensions. Every run is a separate process. The reported memory is its peak minus the memory after imports
and construction of the encoder. Three methods find the 20 hardest examples of each of ten classes:

* ``embed``: shards on disk, one stream over them at the end;
* ``predict``: ``Trainer.predict`` as it is, which returns all predictions, then decision values, then a sort;
* ``loop``: a loop over the loader that appends embeddings to a list, then selects in the same way.

All find the same examples; ``embed`` stores float16, so it may differ where two values are nearly equal.
With ``--plot``, memory against the size of the pool, and over time, as SVG.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_failures import FailureModes
from lightning_failures.cli.lightning_commands import FailureTrainer
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.encoders import ModuleEncoder

WAYS = ("embed", "predict", "loop")
CLASSES, DIM, SIDE, K, BATCH, SHARD = 10, 512, 8, 20, 100, 1000
MB = 2**20


class MadeUp(Dataset):  # type: ignore[type-arg]
    """A data set of any size whose images are generated from their indices."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.classes = [str(k) for k in range(CLASSES)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = np.random.default_rng(index).random((3, SIDE, SIDE), dtype=np.float32)
        return torch.from_numpy(image), index % CLASSES


class Pool(L.LightningDataModule):
    """The pool as a data module."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the pool in order."""
        return DataLoader(MadeUp(self.size), batch_size=BATCH)


class Embeds(L.LightningModule):
    """The module that ``Trainer.predict`` runs."""

    def __init__(self, encoder: ModuleEncoder) -> None:
        super().__init__()
        self.encode = encoder.encode_images

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return embeddings and labels."""
        return self.encode(batch[0]), batch[1]


def an_encoder() -> ModuleEncoder:
    """Return the encoder, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(SIDE), nn.Flatten(), nn.Linear(3 * SIDE * SIDE, DIM))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return ModuleEncoder(net, "2", name="a random layer")


def some_directions(encoder: ModuleEncoder) -> FailureDirections:
    """Return directions of 1,000 images that fail by the red value of a corner."""
    images, labels = next(iter(DataLoader(MadeUp(1000), batch_size=1000)))
    return fit_failure_directions(
        encoder.encode_images(images), labels, images[:, 0, :4, :4].mean((1, 2)) > 0.45, permutations=99
    )


def resident() -> int:
    """Return the resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Watch(threading.Thread):
    """Records the memory of the process every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begin, self.seen = time.monotonic(), [(0.0, resident())]
        self.over = threading.Event()

    def run(self) -> None:
        """Record until stopped."""
        while not self.over.wait(0.02):
            self.seen.append((time.monotonic() - self.begin, resident()))

    def figures(self) -> dict[str, Any]:
        """Stop recording; return the peak of the added memory, overall and in each fortieth of the time."""
        self.over.set()
        self.join()
        seconds, sizes = np.array(self.seen).T
        added = (sizes - sizes[0]) / MB
        places = np.linspace(0, seconds[-1], 41)
        curve = [added[(seconds >= a) & (seconds <= b)] for a, b in pairwise(places)]
        return {
            "seconds": round(float(seconds[-1]), 1),
            "added_mb": round(float(added.max()), 1),
            "curve_mb": [round(float(part.max()), 1) if len(part) else None for part in curve],
        }


def hardest(directions: FailureDirections, embeddings: Tensor, labels: Tensor) -> list[list[int]]:
    """Return the ids of the most negative decision values of each class, all in memory."""
    values = directions.decision_values(embeddings, labels)
    found = []
    for label in range(CLASSES):
        mine = (labels == label).nonzero().flatten()
        found.append(mine[values[mine].argsort()][:K].tolist())
    return found


def overlap(one: list[list[int]], other: list[list[int]]) -> float:
    """Return the share of the examples that both found."""
    return round(float(np.mean([len(set(a) & set(b)) / K for a, b in zip(one, other, strict=True)])), 3)


def one_run(way: str, size: int, folder: Path) -> dict[str, Any]:
    """Run one method on one size in a separate process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    encoder = an_encoder()
    path = folder.parent / "directions.safetensors"
    if not path.exists():
        some_directions(encoder).save(path)
    directions = FailureDirections.load(path)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = FailureTrainer(callbacks=[FailureModes(encoder=encoder)], **options)
    # what is loaded and allocated once, whatever the pool
    Embeds(encoder)
    directions.decision_values(encoder.encode_images(torch.rand(BATCH, 3, SIDE, SIDE)), torch.zeros(BATCH))
    watch = Watch()
    watch.start()
    if way == "embed":
        run.embed(L.LightningModule(), Pool(size), directions=path, k=K, output=folder, shard_size=SHARD)
        classes = json.loads((folder / "hardest.json").read_text())["classes"]
        found = [[row["id"] for row in entry["hardest"]] for entry in classes]
    elif way == "predict":
        predictions = L.Trainer(**options).predict(Embeds(encoder), DataLoader(MadeUp(size), batch_size=BATCH))
        rows, labels = (torch.cat(part) for part in zip(*predictions, strict=True))
        found = hardest(directions, rows, labels)
    else:
        kept = [
            (encoder.encode_images(images), labels) for images, labels in DataLoader(MadeUp(size), batch_size=BATCH)
        ]
        rows, labels = (torch.cat(part) for part in zip(*kept, strict=True))
        found = hardest(directions, rows, labels)
    return {"way": way, "size": size, "hardest": found} | watch.figures()


def plot(runs: list[dict[str, Any]]) -> str:
    """Draw peak memory against size on logarithmic axes, and memory over the time of the longest runs."""
    colour = {"embed": "#d62728", "predict": "#1f77b4", "loop": "#2ca02c"}
    sizes = sorted({run["size"] for run in runs})
    top = max(run["added_mb"] for run in runs)
    out = ['<text x="50" y="20">most memory, MB, by the examples of the pool</text>']
    out += ['<text x="450" y="20">memory, MB, over the time of the largest pool</text>']

    def y(value: float) -> float:
        return 260 - 220 * value / top

    def x(size: float) -> float:
        return 50 + 300 * float(np.log(size / sizes[0]) / np.log(sizes[-1] / sizes[0]))

    for value in np.linspace(0, top, 5):
        for left in (50, 450):
            out.append(f'<path d="M{left} {y(value):.0f}h300" stroke="#ddd"/>')
            out.append(f'<text x="{left - 6}" y="{y(value) + 4:.0f}" text-anchor="end">{value:.0f}</text>')
    for size in sizes:
        out.append(f'<text x="{x(size):.0f}" y="278" text-anchor="middle">{size:,}</text>')
    for k, way in enumerate(WAYS):
        mine = sorted((run for run in runs if run["way"] == way), key=lambda run: run["size"])
        points = " ".join(f"{x(run['size']):.1f},{y(run['added_mb']):.1f}" for run in mine)
        curve = [(i, v) for i, v in enumerate(mine[-1]["curve_mb"]) if v is not None]
        over = " ".join(f"{450 + 300 * i / 39:.1f},{y(max(v, 0)):.1f}" for i, v in curve)
        for line in (points, over):
            out.append(f'<polyline points="{line}" fill="none" stroke="{colour[way]}" stroke-width="2"/>')
        out.append(f'<text x="60" y="{50 + 16 * k}" fill="{colour[way]}">{way}</text>')
    size_of = 'width="780" height="290" viewBox="0 0 780 290"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size_of} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *out, "</svg>"]) + "\n"


def main() -> None:
    """Run all sizes and methods one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[3_000, 30_000, 300_000])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--plot", action="store_true", help="write an SVG next to the output")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        way, size, folder = arguments.one
        (Path(folder).parent / "run.json").write_text(json.dumps(one_run(way, int(size), Path(folder))))
        return
    runs = []
    print(f"{'examples':>9}  {'way':8}{'MB added':>9}{'seconds':>9}")
    with tempfile.TemporaryDirectory() as temporary:
        for size in arguments.sizes:
            for way in WAYS:
                folder = Path(temporary) / f"{way}-{size}"
                subprocess.run([sys.executable, __file__, "--one", way, str(size), str(folder)],
                               check=True, stdout=subprocess.DEVNULL)  # fmt: skip
                runs.append(json.loads((Path(temporary) / "run.json").read_text()))
                print(f"{size:>9,}  {way:8}{runs[-1]['added_mb']:>9.0f}{runs[-1]['seconds']:>9.1f}", flush=True)
    first, last = min(arguments.sizes), max(arguments.sizes)
    found = {(run["way"], run["size"]): run.pop("hardest") for run in runs}
    added = {(run["way"], run["size"]): run["added_mb"] for run in runs}
    result = {
        "setting": {"classes": CLASSES, "dim": DIM, "shard": SHARD, "batch": BATCH, "k": K},
        "growth_mb": {way: round(added[way, last] - added[way, first], 1) for way in WAYS},
        "share_of_the_same_hardest": {
            str(size): min(overlap(found["embed", size], found[way, size]) for way in WAYS) for size in arguments.sizes
        },
        "runs": runs,
    }
    print(f"\nfrom {first:,} to {last:,} examples: " + ", ".join(
        f"{way} {growth:+.0f} MB" for way, growth in result["growth_mb"].items()))  # fmt: skip
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")
        if arguments.plot:
            arguments.output.with_suffix(".svg").write_text(plot(runs))


if __name__ == "__main__":
    main()
