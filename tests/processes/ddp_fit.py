"""Run by test_distributed.py on one to four ranks: evaluations of many lengths; every rank writes its results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Sampler

from lightning_failures.analysis import AnalysisResult
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, callback, loader, trainer


class Recording(OracleClassifier):
    """A model that records the logged keys in order."""

    def __init__(self) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.keys: list[str] = []

    def log(self, name, *args, **kwargs):
        self.keys.append(name)
        super().log(name, *args, **kwargs)


class Sourced(Images):
    """Images in pairs of one source."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.groups = torch.arange(size) // 8 * 4 + torch.arange(size) % 4


class Backwards(Sampler):
    """A sampler of the user that is not aware of ranks."""

    def __init__(self, data) -> None:
        self.data = data

    def __iter__(self):
        return iter(range(len(self.data) - 1, -1, -1))

    def __len__(self) -> int:
        return len(self.data)


class OnlyFirst(Backwards):
    """A sampler that gives all examples to the first rank and none to the others."""

    def __iter__(self):
        return super().__iter__() if len(self) else iter(())

    def __len__(self) -> int:
        return 0 if dist.is_initialized() and dist.get_rank() > 0 else len(self.data)


def sampled(sampler: type[Backwards], size: int) -> DataLoader:
    data = Images(size, seed=size)
    return DataLoader(data, batch_size=16, sampler=sampler(data))


def fits(val: Callable[[], DataLoader]) -> Callable[[L.Trainer, OracleClassifier], None]:
    return lambda run, module: run.fit(module, loader(64), val())


def validates(*val: Callable[[], DataLoader]) -> Callable[[L.Trainer, OracleClassifier], None]:
    return lambda run, module: run.validate(module, [one() for one in val], verbose=False)


def tests(size: int) -> Callable[[L.Trainer, OracleClassifier], None]:
    return lambda run, module: run.test(module, loader(size), verbose=False)


EVERYTHING_EVERYWHERE = {"use_distributed_sampler": False}
CASES: dict[str, tuple[Callable[[L.Trainer, OracleClassifier], None], dict[str, Any]]] = {
    # evaluation, options of the Trainer
    "does not divide": (fits(lambda: DataLoader(Sourced(157), batch_size=16)), {"max_epochs": 2}),
    "fewer batches than processes": (fits(lambda: loader(10)), {}),
    "fewer examples than processes": (validates(lambda: loader(3)), {}),
    "one example": (validates(lambda: loader(1)), {}),
    "shuffled": (fits(lambda: loader(101, shuffle=True)), {}),
    "every process sees all": (validates(lambda: loader(90)), EVERYTHING_EVERYWHERE),
    "several loaders": (validates(lambda: loader(70), lambda: loader(45, seed=45)), {}),
    "no batch": (validates(lambda: sampled(OnlyFirst, 125), lambda: loader(70)), EVERYTHING_EVERYWHERE),
    "a sampler of one's own": (validates(lambda: sampled(Backwards, 61)), {}),
    "test": (tests(69), {}),
    "validate": (validates(lambda: loader(157)), {}),
}


def main(folder: Path, devices: int) -> None:
    torch.set_num_threads(1)
    ddp = {"strategy": "ddp", "devices": devices} if devices > 1 else {"devices": 1}
    for name, (work, options) in CASES.items():
        print(name, flush=True)  # shows where a run hangs
        failures = callback(robust_encoder=ColourEncoder("robust"), pictures=False, metadata=("dark",))
        run = trainer(folder / name, failures, **({"use_distributed_sampler": True} | ddp | options))
        module = Recording()
        work(run, module)
        write(folder / name, f"rank_{run.global_rank}", failures.last_report, module, run)


def write(place: Path, name: str, report: AnalysisResult, module: Recording, run: L.Trainer) -> None:
    place.mkdir(parents=True, exist_ok=True)
    if report.directions is not None:
        report.directions.save(place / f"{name}.safetensors")
    trees = {
        " ".join(key): [{"rule": leaf.rule, "ids": leaf.ids.tolist()} for leaf in tree.leaves]
        for key, tree in report.trees.items()
    }
    metrics = {key: float(value) for key, value in run.callback_metrics.items() if key.startswith("failures/")}
    keys = [key for key in module.keys if key.startswith("failures/")]
    seen = {"report": report.to_dict(), "trees": trees, "keys": keys, "metrics": metrics}
    (place / f"{name}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
