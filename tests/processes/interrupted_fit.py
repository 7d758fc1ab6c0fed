"""Run by test_interruption.py, once for each training: it may be interrupted or killed at any stage.

The argument is a job as JSON: folder, name, interventions, epochs, workers, and perhaps a fault.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, Subset

from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.interventions import AddFiltered, Upweight
from tests.end_to_end.test_added import Pool
from tests.end_to_end.test_interventions import Numbered
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, callback, trainer

STAGES = {
    "embedding a validation batch": ("lightning_failures.trainer.evaluation_pass:EmbeddingPass.embed", 3),
    "fitting directions": ("lightning_failures.directions.svm:fit_scaled", 2),
    "fitting trees": ("lightning_failures.trees.growing:grow_trees", 2),
    "decision": ("lightning_failures.interventions.upweight:Upweight.decide", 1),
    "embedding the training set": ("lightning_failures.steering.training_view:ExamplesView.blocks", 1),
    "writing the report": ("pathlib:Path.replace", 1),
    "training step": ("tests.processes.interrupted_fit:Module.training_step", 4),
}
"""Stages at which a training can be interrupted: a function, and the number of its call within the epoch."""


class ByEpoch(Sampler[int]):
    """A sampler of the user whose order depends on the epoch that Lightning sets."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def __iter__(self):
        return iter(torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class CountingLoader(DataLoader):
    """A stateful loader: it counts the batches of an epoch, and skips those of its state in the next pass."""

    given = skip = 0

    def __iter__(self):
        skip, self.skip, self.given = self.skip, 0, 0
        return self._rest(super().__iter__(), skip)

    def _rest(self, batches, skip):
        for batch in batches:
            self.given += 1
            if self.given > skip:
                yield batch

    def state_dict(self):
        return {"given": self.given % len(self)}

    def load_state_dict(self, state):
        self.skip = state["given"]


class Fading(Images):
    """Images that get darker with each epoch, so that every epoch has new images to embed."""

    epoch = 0

    def __getitem__(self, index):
        return self.transform(self.images[index] * (1 - 0.01 * self.epoch)), int(self.labels[index])


class Module(OracleClassifier):
    """A model that errs on dark images and learns the others; writes the examples of every step to a file."""

    def __init__(self, notes: Path) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.notes = notes

    def forward(self, x):
        return self._guess(x * 0.25 + 0.5) / 4 + 2 * self.net(x)

    def training_step(self, batch, batch_idx):
        x, y, index, *weights = batch
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        note = {"epoch": self.current_epoch, "ids": index.tolist(), "weights": [w.tolist() for w in weights]}
        with self.notes.open("a") as file:
            file.write(json.dumps(note) + "\n")
        return (losses * weights[0]).mean() if weights else losses.mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)]


INTERVENTIONS = {
    "none": list,
    "upweight": lambda: [Upweight(factor=4.0)],
    "upweight later": lambda: [Upweight(factor=4.0, start_epoch=2)],
    "weight_key": lambda: [Upweight(factor=4.0, weight_key="weight")],
    "filtered": lambda: [AddFiltered(Pool(120), 6, similarity=1.0)],
    "another pool": lambda: [AddFiltered(Pool(90), 6, similarity=1.0)],
    "both": lambda: [Upweight(factor=4.0), AddFiltered(Pool(120), 6, similarity=1.0, every_n_epochs=9)],
}


class PlantedError(RuntimeError):
    """The exception raised at a stage."""


class Fault:
    """Interrupts the process once, at a stage of an epoch, before the called function does anything."""

    def __init__(self, stage: str, how: str, epoch: int) -> None:
        place, self.left = STAGES[stage]
        self.how, self.epoch, self.stage = how, epoch, stage
        module, name = place.split(":")
        # this script is __main__
        holder: Any = sys.modules["__main__" if module == "tests.processes.interrupted_fit" else module]
        *outer, name = name.split(".")
        for part in outer:
            holder = getattr(holder, part)
        original = getattr(holder, name)

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.called(args)
            return original(*args, **kwargs)

        holders = [one for key, one in sys.modules.items() if key.startswith("lightning_failures")]
        for one in [holder] if outer else [holder, *holders]:  # other modules have imported the function by name
            if vars(one).get(name) is original:
                setattr(one, name, wrapped)
        self.trainer: Any = None

    def called(self, args: tuple[Any, ...]) -> None:
        trainer = self.trainer
        if trainer is None or trainer.sanity_checking or trainer.current_epoch != self.epoch:
            return
        if self.stage == "writing the report" and Path(args[1]).name != "report.json":
            return
        self.left -= 1
        if self.left != 0:
            return
        if self.how == "exception":
            raise PlantedError(self.stage)
        os.kill(os.getpid(), getattr(signal, self.how))


class Keeps(Callback):
    """Records what is still attached after an exception has passed all callbacks; sets the epoch of the data."""

    def __init__(self, stop: list[int] | None) -> None:
        self.stop = stop

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = [trainer.current_epoch, batch_idx] == self.stop  # as Timer does, for max_time

    def on_validation_start(self, trainer, pl_module):
        trainer.val_dataloaders.dataset.dataset.epoch = trainer.current_epoch

    def on_exception(self, trainer, pl_module, exception):
        loaders = [trainer.train_dataloader, trainer.val_dataloaders]
        self.left = {
            "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pl_module.modules()),
            "wrapper": "process_dataloader" in vars(trainer.strategy),
            "samplers": [
                type(part).__name__
                for one in loaders
                if one is not None
                for part in (one.sampler, one.batch_sampler, getattr(one.batch_sampler, "sampler", None), one.dataset)
                if type(part).__module__.startswith("lightning_failures")
            ],
            "exception": type(exception).__name__,
        }


def train_loader(job: dict[str, Any]) -> DataLoader:
    workers = job["workers"]
    kind = CountingLoader if job.get("stateful") else DataLoader
    data = Numbered(job.get("size", 96))
    options = {"batch_size": 16, "num_workers": workers, "persistent_workers": workers > 0}
    order = {"by epoch": {"sampler": ByEpoch(len(data))}, "shuffled": {"shuffle": True}, "as they come": {}}
    return kind(data, **order[job.get("order", "by epoch")], **options)


def validation_loader(job: dict[str, Any]) -> DataLoader:
    data = (Fading if job.get("fading") else Images)(400)
    return DataLoader(Subset(data, range(*job.get("rows", (0, 400)))), batch_size=16)


def fit(job: dict[str, Any], failures: Any, fault: Fault | None = None) -> tuple[Module, Any]:
    folder = Path(job["folder"])
    keeps = ModelCheckpoint(
        folder / "checkpoints", **({"filename": "{epoch}", "save_top_k": -1} | job.get("keeps", {}))
    )
    module = Module(folder / f"{job['name']}.jsonl")
    attached = Keeps(job.get("stop"))
    callbacks = [attached, keeps] if failures is None else [failures, attached, keeps]
    run = trainer(
        folder, *callbacks, max_epochs=job["epochs"], enable_checkpointing=True, logger=False, **job.get("options", {})
    )
    if fault is not None:
        fault.trainer = run
    torch.manual_seed(job.get("seed", 1))
    try:
        run.fit(module, train_loader(job), validation_loader(job), ckpt_path=job.get("ckpt_path"))
    except BaseException:
        (folder / f"{job['name']}.left.json").write_text(json.dumps(attached.left))
        raise
    return module, run


def train(job: dict[str, Any]) -> None:
    """Train to the end or to the interruption, and write the outcome."""
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["LIGHTNING_FAILURES_CACHE"] = job.get("cache") or str(folder / "cache")
    if "max_bytes" in job:
        EmbeddingCache.__init__.__kwdefaults__["max_bytes"] = job["max_bytes"]
    if "purge" in job:
        purge(job["purge"], folder / f"{job['name']}.json")
        return
    failures = None
    if job["interventions"] is not None:
        interventions = INTERVENTIONS[job["interventions"]]()
        failures = callback(robust_encoder=ColourEncoder("robust"), interventions=interventions, pictures=False)
    fault = Fault(**job["fault"]) if "fault" in job else None
    try:
        module, _ = fit(job, failures, fault)
    except PlantedError:
        again = folder / "again"
        again.mkdir()
        module, _ = fit(job | {"folder": str(again), "name": "again"}, failures)  # reuse the callback in another fit
        write_outcome(failures, module, again / "again.json")
        raise
    write_outcome(failures, module, folder / f"{job['name']}.json")


def purge(until: list[str], file: Path) -> None:
    """Purge the cache repeatedly until all files of ``until`` exist."""
    cache, freed = EmbeddingCache(), []
    while not all(Path(one).exists() for one in until):
        freed.append(cache.purge())
        time.sleep(0.02)
    file.write_text(json.dumps([one for one in freed if one]))


def write_outcome(failures: Any, module: Module, file: Path) -> None:
    """Write the report and the weights of a training."""
    report = {} if failures is None else failures.last_report.to_dict()
    outcome = {
        "report": {key: value for key, value in report.items() if key not in ("timings", "run_id")},
        "weights": {name: value.numpy().tobytes().hex() for name, value in module.state_dict().items()},
    }
    file.write_text(json.dumps(outcome))


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(json.loads(sys.argv[1]))
