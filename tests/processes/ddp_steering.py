"""Run by test_processes.py on two ranks: interventions of every kind; each writes its draws and warnings."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from lightning_failures.errors import ConfigurationError, FailureModesError
from lightning_failures.interventions import AddFiltered, AddSynthetic, Upweight
from lightning_failures.steering.forks.run import Run, fork_verdict
from tests.helpers.generated import Counts, draw, from_pil
from tests.helpers.toy import ColourEncoder, Images, callback, loader, trainer
from tests.processes.ddp_faults import Model, Numbered, Speaks
from tests.processes.ddp_fit import Backwards


class Generates(Speaks):
    """Unit vectors, which captions need; the fingerprint is the same in all processes and runs."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.fingerprint = "generates", "tests-generates"

    def encode_images(self, images):
        return F.normalize(super().encode_images(images), dim=1)


def synthetic() -> AddSynthetic:
    return AddSynthetic(draw, per_class=6, max_share=0.25, transform=from_pil, every_n_epochs=9, similarity=1.0)


class CountsByEpoch(Counts):
    @property
    def epochs(self) -> dict[int, list[int]]:
        """The classes of the generated images of each epoch."""
        return self.generated


class Many(Numbered):
    """Images of 24 classes; the label is encoded in two pixels."""

    def __init__(self, size: int, seed: int) -> None:
        Images.__init__(self, size, 24, seed)
        self.fault = lambda: None
        self.images[:, :, 0, 0] = (0.1 * (self.labels % 8))[:, None]
        self.images[:, :, 0, 1] = (0.1 * (self.labels // 8))[:, None]


class ReadsMany(Model):
    """A model that errs on dark images, less so the more of them it has been trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 24))
        self.register_buffer("cured", torch.zeros(24))

    def forward(self, x):
        pixels = x * 0.25 + 0.5
        labels = ((pixels[:, 0, 0, 0] * 10).round() + 8 * (pixels[:, 0, 0, 1] * 10).round()).long() % 24
        dark = pixels.mean((1, 2, 3)) < 0.45
        wrong = dark & (pixels[:, 1, 3, 3] * 1000 % 1 < 0.9 - self.cured[labels])
        if self.training:
            self.cured += 0.008 * torch.bincount(labels[dark], minlength=24)
        return 4.0 * F.one_hot((labels + wrong.long()) % 24, 24).float() + self.net(x) * 1e-6

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        self.epochs.setdefault(self.current_epoch, []).extend(index.tolist())
        return F.cross_entropy(self(x), y)


class Shuffles(Backwards):
    """A sampler of the user that is not aware of ranks and shuffles for each epoch."""

    def __init__(self, data) -> None:
        super().__init__(data)
        self.generator = torch.Generator().manual_seed(3)

    def __iter__(self):
        return iter(torch.randperm(len(self), generator=self.generator).tolist())


DATA = Numbered(96, 5)
TRAIN = {
    "Lightning's sampler": lambda: DataLoader(DATA, batch_size=16, shuffle=True),
    "a sampler of one's own": lambda: DataLoader(DATA, batch_size=16, sampler=Shuffles(DATA)),
    "sampler of each process": lambda: DataLoader(DATA, batch_size=16, sampler=RandomSampler(DATA)),
    "DistributedSampler": lambda: DataLoader(DATA, batch_size=16, sampler=DistributedSampler(DATA, 2, rank())),
}


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def run(folder: Path, name: str) -> dict[str, Any]:
    options: dict[str, Any] = {"interventions": [Upweight(factor=4.0)], "on_error": "warn", "pictures": False}
    fitting: dict[str, Any] = {"max_epochs": 3, "use_distributed_sampler": name not in OF_EACH}
    module: Any = Model()
    data: Callable[[], Any] = TRAIN.get(name, TRAIN["Lightning's sampler"])
    val: DataLoader[Any] = loader(400)
    if name == "AddSynthetic":
        options |= {"interventions": [synthetic()], "encoder": Generates()}
        module, data = CountsByEpoch(), lambda: DataLoader(Images(96, seed=5), batch_size=16, shuffle=True)
    elif name == "AddFiltered, caches apart":
        pool = AddFiltered(Numbered(200, 11), per_class=5)
        options |= {"interventions": [pool], "cache_folder": folder / f"cache_{rank()}"}
    elif name == "lottery":
        one = Upweight(factor=10.0, max_flagged=1.0, every_n_epochs=9, triage=False)
        options |= {"interventions": [one], "verdict": "lottery"}
        module, data = ReadsMany(), lambda: DataLoader(Many(720, 5), batch_size=16, shuffle=True)
        val = DataLoader(Validation(), batch_size=64)
    failures = callback(**options)
    fitted = trainer(folder, failures, strategy="ddp", devices=2, **fitting)
    torch.manual_seed(rank())  # ranks have different seeds
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted.fit(module, data(), val)
    report = failures.last_report
    return {
        "report": {k: v for k, v in report.to_dict().items() if k not in ("timings", "run_id")},
        "warnings": [text for one in caught if "FailureModes" in (text := str(one.message))],
        "epochs": module.epochs,
        "sizes": getattr(module, "sizes", None),
        "steps": fitted.global_step,
    }


class Validation(Many):
    """Examples of two items, which the metrics expect."""

    def __init__(self) -> None:
        super().__init__(2400, 0)

    def __getitem__(self, index):
        return super().__getitem__(index)[:2]


OF_EACH = ("sampler of each process", "DistributedSampler")
CASES = (*TRAIN, "AddSynthetic", "AddFiltered, caches apart", "lottery")


def judge(folder: Path) -> dict[str, Any]:
    """Return the verdict by forks, as ``lightning-failures verdict`` computes it."""
    saves = ModelCheckpoint(folder / "saved", save_top_k=-1, filename="{epoch}")
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": True}
    L.seed_everything(1, verbose=False)
    first = trainer(folder, saves, max_epochs=1, enable_checkpointing=True, **options)
    first.fit(Model(), TRAIN["Lightning's sampler"](), loader(400))

    def make_run() -> Run:
        failures = callback(interventions=[Upweight(factor=4.0)], pictures=False, encoder=ColourEncoder())
        data = {"train_dataloaders": TRAIN["Lightning's sampler"](), "val_dataloaders": loader(400)}
        return Run(trainer(folder, failures, max_epochs=4, **options), Model(), data)

    checkpoint = folder / "saved" / "epoch=0.ckpt"
    return fork_verdict(make_run, checkpoint, pairs=1, files=folder / "files", folder=folder / "forks").to_dict()


def refused(folder: Path, encoder: Any) -> dict[str, Any]:
    """Return the error of the set-up with an encoder."""
    try:
        trainer(folder, callback(encoder=encoder, on_error="warn"), strategy="ddp", devices=2).validate(
            Model(), loader(32), verbose=False
        )
    except FailureModesError as error:
        return {"raised": str(error), "configuration": isinstance(error, ConfigurationError)}
    return {"raised": "", "configuration": False}


def apart(folder: Path) -> dict[str, Any]:
    """Give each rank other weights under one name."""
    encoder = ColourEncoder()
    encoder.fingerprint += f"-{rank()}"
    return refused(folder, encoder)


def missing(folder: Path) -> dict[str, Any]:
    """Let the second rank miss its weights."""
    return refused(folder, "local-dir:nowhere" if rank() else ColourEncoder())


def unsaved(folder: Path) -> dict[str, Any]:
    """Let the first rank fail to write the checkpoint from which the forks start."""
    failures = callback(interventions=[Upweight(factor=4.0)], pictures=False, on_error="warn", verdict="fork")
    run = trainer(folder, failures, max_epochs=2, strategy="ddp", devices=2, num_sanity_val_steps=0)
    save = run.strategy.save_checkpoint

    def full(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        if rank() == 0:
            raise OSError(28, "No space left on device")

    run.strategy.save_checkpoint = full
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(Model(), TRAIN["Lightning's sampler"](), loader(400))
    return {"steps": run.global_step, "warnings": [str(one.message) for one in caught if "skips" in str(one.message)]}


class Learns(Model):
    """A model that depends on what it has seen: the order of its examples decides where it errs."""

    def forward(self, x):
        return self.net(x) + 0.5 * self._guess(x * 0.25 + 0.5)


def forked(folder: Path) -> dict[str, Any]:
    """Let ``verdict="fork"`` run at the end of the training, in its own processes."""
    failures = callback(
        interventions=[Upweight(factor=4.0)], pictures=False, encoder=ColourEncoder(), on_error="raise", verdict="fork"
    )
    run = trainer(folder, failures, max_epochs=3, strategy="ddp", devices=2, num_sanity_val_steps=0)
    L.seed_everything(1, verbose=False)
    module = Learns()
    run.fit(module, TRAIN["Lightning's sampler"](), loader(400))
    weights = {name: value.tolist() for name, value in module.state_dict().items()}
    return {
        "steps": run.global_step,
        "verdict": failures.last_report["interventions"][0]["verdict"],
        "weights": weights,
    }


OTHERS = {
    "verdict": judge,
    "verdict in fit": forked,
    "encoders apart": apart,
    "weights missing": missing,
    "checkpoint unsaved": unsaved,
}


def main(folder: Path, *names: str) -> None:
    torch.set_num_threads(1)
    for name in names or (*CASES, *OTHERS):
        print(name, flush=True)  # shows where a run hangs
        place = folder / name
        seen = OTHERS[name](place) if name in OTHERS else run(place, name)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"rank_{rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
