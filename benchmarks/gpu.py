"""What the callback costs a training on a GPU, whether a GPU reports what a CPU reports, and the tests that need one.

    python benchmarks/gpu.py --output benchmarks/results/gpu.json   # with CUDA; sized for less than ten minutes
    python benchmarks/gpu.py --small                                # the same code, in seconds, on any machine

One run measures, on the first CUDA device, or without CUDA on the CPU:

* *epochs*: seconds of an epoch of a ResNet-18 on 50,000 random images of 32 pixels in bfloat16, validated on 10,000,
  with and without ``FailureModes`` in turn, each time with an empty cache; the first epoch, in which images are
  embedded, by itself. The encoder of the directions is a CLIP of the size of ViT-B/32, that of the trees a ResNet-18,
  both with random weights. Pictures are off: they cost once, not every epoch.
* *stages*: seconds of each stage in a run of its own, because the GPU must finish before a stage and after it.
* *encoder*: images embedded a second, in single precision.
* *parity*: embeddings, the analysis of planted failures, and sparse layers, on the device and on the CPU, with the
  seconds of both.
* *memory*: the peak of the GPU with and without the callback, and of the process.
* *tests*: the tests marked ``gpu``; there is nothing to run without CUDA.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import open_clip
import torch
from imagenet_size import MIB, Case, draw, peak_memory
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save_file
from stages import STAGES, Clock, Epoch, now, stopwatches
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.models.resnet import BasicBlock, ResNet

from lightning_failures import FailureModes
from lightning_failures.analysis import AnalysisResult
from lightning_failures.analysis.analyse import analyse
from lightning_failures.bundled.digits.data import CLASSES
from lightning_failures.callback import AdvancedOptions
from lightning_failures.core.atomic import write_atomically
from lightning_failures.encoders import ModuleEncoder, OpenCLIPEncoder
from lightning_failures.sparse import fit_sparse_path

ROOT = Path(__file__).parents[1]
PREPROCESSING = {"interpolation": "bicubic", "resize_mode": "shortest", "mean": [0.5] * 3, "std": [0.25] * 3}
SMALL_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class Setting:
    """The size of everything.

    Attributes:
        images: Training images, validation images, and pixels along a side.
        batch: Images of a batch.
        clip: Configuration of the encoder, as open_clip writes it.
        embedded: Images to embed for the speed of the encoder, and for its parity.
        analysis: The analysis whose results are compared.
        sparse: Examples and features of the sparse layers that are compared.
        workers: Processes of each loader.
        blocks: Blocks in each of the four parts of the ResNets.
    """

    images: tuple[int, int, int]
    batch: int
    clip: dict[str, Any]
    embedded: tuple[int, int]
    analysis: Case
    sparse: tuple[int, int]
    workers: int
    blocks: int

    @classmethod
    def full(cls) -> Setting:
        """Return the size that is reported."""
        clip = {key: open_clip.get_model_config("ViT-B-32")[key] for key in SMALL_CLIP}
        workers = min(8, (os.cpu_count() or 2) // 2)
        return cls(
            (50_000, 10_000, 32), 512, clip, (8192, 256), Case(10, 0.4, examples=1000), (50_000, 512), workers, 2
        )

    @classmethod
    def small(cls) -> Setting:
        """Return a size for seconds on a CPU."""
        return cls((32, 40, 8), 16, SMALL_CLIP, (64, 16), Case(2, 0.5, examples=400), (2_000, 160), 0, 1)


class RandomImages(Dataset[tuple[Tensor, int]]):
    """Random images with a mark of their class, which is faint on half of them: a model fails there."""

    def __init__(self, size: int, pixels: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.classes = list(CLASSES)
        self.labels = torch.arange(size) % len(CLASSES)
        self.images = torch.randint(0, 256, (size, 3, pixels, pixels), dtype=torch.uint8, generator=generator)
        self.strength = torch.where(torch.rand(size, generator=generator) < 0.5, 8, 128)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index].clone(), int(self.labels[index])
        image[label % 3, : image.shape[1] // 2] //= 2
        image[:, label // 3 % 2 :: 2, :2] = int(self.strength[index])
        return image / 255, label


class Classifier(L.LightningModule):
    """A ResNet for small images."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.net = _resnet(blocks)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss."""
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Log the loss."""
        self.log("val_loss", self.training_step(batch, index))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def _resnet(blocks: int) -> nn.Module:
    """Return a ResNet with the stem for small images; with two blocks a part it is a ResNet-18."""
    net = ResNet(BasicBlock, [blocks] * 4, num_classes=len(CLASSES))
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


def write_clip(folder: Path, config: dict[str, Any]) -> str:
    """Write a CLIP with random weights in open_clip's form; return its name as an encoder."""
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    described = json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESSING})
    (folder / "open_clip_config.json").write_text(described)
    return f"local-dir:{folder}"


def train(
    setting: Setting, encoder: str, device: torch.device, epochs: int, *, analysed: bool, staged: bool = False
) -> dict[str, Any]:
    """Train once; return the times of the epochs, with those of the stages if ``staged``, and the memory."""
    torch.manual_seed(0)
    n_train, n_val, pixels = setting.images
    options = {"batch_size": setting.batch, "num_workers": setting.workers, "persistent_workers": setting.workers > 0}
    loaders = (
        DataLoader(RandomImages(n_train, pixels, 0), shuffle=True, **options),
        DataLoader(RandomImages(n_val, pixels, 1), **options),
    )
    clock, model = Clock(), Classifier(setting.blocks)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[L.Callback] = [clock]
        if analysed:
            robust = ModuleEncoder(
                _resnet(setting.blocks).eval(), "avgpool", mean=[0.5] * 3, std=[0.25] * 3, device=device
            )
            advanced = AdvancedOptions(cache_folder=Path(folder, "cache"), device=device)
            callbacks.append(
                FailureModes(
                    encoder=encoder,
                    robust_encoder=robust,
                    captions="digits",
                    pictures=False,
                    on_error="raise",
                    advanced=advanced,
                )
            )
        trainer = L.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed",
            max_epochs=epochs,
            num_sanity_val_steps=0,
            logger=CSVLogger(folder),
            callbacks=callbacks,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        with stopwatches(clock) if staged else nullcontext():
            trainer.fit(model, *loaders)
    peak = torch.cuda.max_memory_allocated() / MIB if device.type == "cuda" else None
    return {"epochs": clock.epochs, "gpu_peak_mib": peak}


def measure_epochs(setting: Setting, encoder: str, device: torch.device, *, epochs: int, rounds: int) -> dict[str, Any]:
    """Train with and without the callback in turn; return seconds of epochs, of stages, and memory."""
    train(setting, encoder, device, 1, analysed=True)  # what is compiled and tuned once a machine
    runs: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for number in range(rounds):
        for analysed in (number % 2 == 0, number % 2 == 1):
            runs[analysed].append(train(setting, encoder, device, epochs, analysed=analysed))
    stages = train(setting, encoder, device, epochs, analysed=True, staged=True)["epochs"]
    seconds = {  # (rounds, epochs)
        analysed: np.array([[epoch["epoch"][0] for epoch in run["epochs"]] for run in found])
        for analysed, found in runs.items()
    }
    added = np.median(seconds[True][:, 1:], axis=1) - np.median(seconds[False][:, 1:], axis=1)  # (rounds,)
    return {
        "seconds_with": seconds[True].tolist(),
        "seconds_without": seconds[False].tolist(),
        "added_by_round": added.tolist(),
        "added_in_the_first": (seconds[True][:, 0] - seconds[False][:, 0]).tolist(),
        "stages_of_the_first": _seconds(stages[0]),
        "stages": [_seconds(epoch) for epoch in stages[1:]],
        "gpu_peak_mib_with": runs[True][-1]["gpu_peak_mib"],
        "gpu_peak_mib_without": runs[False][-1]["gpu_peak_mib"],
    }


def _seconds(epoch: Epoch) -> dict[str, float]:
    """Return the wall time of each stage."""
    return {name: float(times[0]) for name, times in epoch.items()}


def measure_encoder(setting: Setting, name: str, device: torch.device) -> dict[str, Any]:
    """Return the images that the encoder embeds a second, and how far its embeddings are from those on the CPU."""
    many, few = setting.embedded
    images = torch.rand(many, 3, setting.images[2], setting.images[2], generator=torch.Generator().manual_seed(0))
    encoder, on_cpu = (OpenCLIPEncoder(name, device=one) for one in (device, "cpu"))
    given = images.to(device)
    encoder.encode_images(given[: encoder.batch_size])
    seconds, found = timed(lambda: encoder.encode_images(given))
    expected = on_cpu.encode_images(images[:few])
    return {
        "images": many,
        "images_per_second": many / seconds,
        "embeddings_compared": few,
        "largest_difference": float((found[:few] - expected).abs().max()),
        "smallest_cosine": float(F.cosine_similarity(found[:few], expected).min()),
    }


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a function takes, and its result."""
    start = now()
    result = function()
    return float((now() - start)[0]), result


def measure_analysis(setting: Setting, device: torch.device, rounds: int) -> dict[str, Any]:
    """Analyse planted failures on the device and on the CPU in turn; return the seconds, and compare the reports."""
    data = draw(setting.analysis)

    def run(where: torch.device | str) -> AnalysisResult:
        return analyse(
            data.grades, data.embeddings, features=data.features, captions=data.captions, n_directions=2, device=where
        )

    run(device)  # loads libraries and kernels
    seconds: dict[str, list[float]] = {"device": [], "cpu": []}
    timings: dict[str, list[dict[str, float]]] = {"device": [], "cpu": []}
    found: dict[str, AnalysisResult] = {}
    for _ in range(rounds):
        for name, where in (("device", device), ("cpu", "cpu")):
            spent, found[name] = timed(lambda where=where: run(where))
            seconds[name].append(spent)
            timings[name].append(found[name].report.timings)
    return {"case": asdict(setting.analysis), "seconds": seconds, "timings": timings} | compared(
        found["device"], found["cpu"]
    )


def compared(found: AnalysisResult, expected: AnalysisResult) -> dict[str, Any]:
    """Return how two analyses of the same data differ."""
    pairs = list(zip(found.report.classes, expected.report.classes, strict=True))
    one, other = found.directions, expected.directions
    assert one is not None
    assert other is not None

    def equal(*names: str) -> float:
        return float(np.mean([getattr(a, name) == getattr(b, name) for a, b in pairs for name in names]))

    return {
        "classes": len(pairs),
        "patterns": sum(b.pattern for _, b in pairs),
        "patterns_equal": equal("pattern"),
        "hardest_captions_equal": equal("hardest_captions"),
        "hardest_ids_equal": equal("hardest_ids"),
        "groups_equal": float(
            np.mean([a == b for a, b in zip(found.report.groups, expected.report.groups, strict=True)])
        ),
        "smallest_cosine": float(F.cosine_similarity(one.weight, other.weight).min()),
        "largest_difference_of_p_values": float((one.p_value - other.p_value).abs().max()),
        "largest_difference_of_cv_scores": float((one.cv_score - other.cv_score).abs().max()),
        "flags_equal": float(((one.out_of_fold < 0) == (other.out_of_fold < 0)).double().mean()),
    }


def measure_sparse(setting: Setting, device: torch.device) -> dict[str, Any]:
    """Fit sparse layers on the device and on the CPU; return the seconds, and how far the objectives differ."""
    rng = np.random.default_rng(0)
    n, dim = setting.sparse
    x = rng.standard_normal((n, dim), dtype=np.float32)
    weight = rng.standard_normal((dim, len(CLASSES)), dtype=np.float32) * (rng.random((dim, len(CLASSES))) < 0.02)
    labels = (x @ weight + rng.gumbel(size=(n, len(CLASSES)))).argmax(axis=1)
    options: dict[str, Any] = {"n_lambdas": 10, "lambda_ratio": 0.05}
    fit_sparse_path(x[:1000], labels[:1000], n_lambdas=2, lambda_ratio=0.5, device=device)  # loads libraries
    seconds, found = timed(lambda: fit_sparse_path(x, labels, device=device, **options))
    seconds_on_cpu, expected = timed(lambda: fit_sparse_path(x, labels, **options))
    return {
        "examples": n,
        "features": dim,
        "seconds": {"device": seconds, "cpu": seconds_on_cpu},
        "largest_relative_difference_of_objectives": float((found.objective / expected.objective - 1).abs().max()),
        "largest_residual": float(found.residual.max()),
    }


def run_tests() -> dict[str, Any]:
    """Run the tests marked ``gpu``; return their exit code and last line. Without CUDA all would be skipped."""
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device"}
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    seconds, done = timed(lambda: subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False))
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-2000:], sep="\n")
    return {"returncode": done.returncode, "summary": lines[-1] if lines else "", "seconds": seconds}


def machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def summary(result: dict[str, Any]) -> str:
    """Return the figures in words."""
    epochs, encoder, analysis, sparse = (result[name] for name in ("epochs", "encoder", "analysis", "sparse"))
    bare = np.median(np.array(epochs["seconds_without"])[:, 1:])
    added, first = np.array(epochs["added_by_round"]), np.median(epochs["added_in_the_first"])
    peaks = [epochs[f"gpu_peak_mib_{kind}"] for kind in ("with", "without")]
    on_gpu = "" if None in peaks else "GPU {:.0f} MiB with the callback, {:.0f} MiB without; ".format(*peaks)
    lines = [
        f"{result['machine']['device']}, torch {result['machine']['torch']}",
        f"an epoch without the callback: {bare:.2f} s; added: {np.median(added):.3f} s ({added.min():.3f} to"
        f" {added.max():.3f}), {np.median(added) / bare:.1%}; in the first: {first:.2f} s",
        f"embedded: {encoder['images_per_second']:.0f} images a second; smallest cosine with the CPU"
        f" {encoder['smallest_cosine']:.6f}",
        "analysis: {:.2f} s on the device, {:.2f} s on the CPU".format(
            *(np.median(analysis["seconds"][name]) for name in ("device", "cpu"))
        ),
        "  equal to the CPU: patterns {patterns_equal:.1%}, captions {hardest_captions_equal:.1%}, hardest examples"
        " {hardest_ids_equal:.1%}, groups {groups_equal:.1%}, flags {flags_equal:.2%}".format(**analysis),
        "sparse layers: {device:.2f} s on the device, {cpu:.2f} s on the CPU".format(**sparse["seconds"]),
        f"peak: {on_gpu}process {result['process_peak_mib']:.0f} MiB",
        f"tests: {result['tests']}",
        "stages of an epoch, median seconds:",
    ]
    names = [name for name in ("epoch", "callback", *STAGES) if any(name in epoch for epoch in epochs["stages"])]
    lines += [f"  {name:<24}{np.median([epoch.get(name, 0.0) for epoch in epochs['stages']]):>9.4f}" for name in names]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure everything, print it, write the raw figures; return them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small size, for any machine")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    if options.epochs < 2:
        parser.error("--epochs must be at least 2: the first one embeds the images")
    if not (options.small or torch.cuda.is_available()):
        parser.error("there is no CUDA device; --small runs the same code on the CPU")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    setting = Setting.small() if options.small else Setting.full()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    start = time.perf_counter()
    result: dict[str, Any] = {"machine": machine(device), "setting": asdict(setting)}

    def add(name: str, value: Any) -> None:
        """Keep what is measured, so that a run that is stopped leaves it."""
        result[name] = value
        result["process_peak_mib"] = peak_memory() / MIB
        result["seconds"] = time.perf_counter() - start
        if options.output is not None:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(options.output, (json.dumps(result, indent=1) + "\n").encode())
        print(f"{name}: done after {result['seconds']:.0f} s", flush=True)

    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        for text in (".*does not have many workers.*", ".*treespec, LeafSpec.*", ".*number of training batches.*"):
            warnings.filterwarnings("ignore", text)
        encoder = write_clip(Path(folder, "clip"), setting.clip)
        add("tests", run_tests())
        add("encoder", measure_encoder(setting, encoder, device))
        add("analysis", measure_analysis(setting, device, options.rounds))
        add("sparse", measure_sparse(setting, device))
        add("epochs", measure_epochs(setting, encoder, device, epochs=options.epochs, rounds=options.rounds))
    print(summary(result))
    return result


if __name__ == "__main__":
    main()
