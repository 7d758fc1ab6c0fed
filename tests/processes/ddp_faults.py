"""Run by test_processes.py on two ranks: one of them fails, at every stage in turn; each writes what it observed."""

from __future__ import annotations

import gc
import itertools
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_failures import writers as sinks
from lightning_failures.captions import score_captions
from lightning_failures.data import grading
from lightning_failures.data.grades import BatchRecord
from lightning_failures.directions import fit_failure_directions
from lightning_failures.encoders.cache.store import EmbeddingStore
from lightning_failures.interventions import AddFiltered, Upweight
from lightning_failures.report import gallery
from lightning_failures.trees import FailureTree, fit_failure_tree
from lightning_failures.writers import FileWriter
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier, callback, loader, trainer

NUMBERS = itertools.count()


class PlantedError(Exception):
    """An exception that cannot be pickled for another process."""

    def __init__(self) -> None:
        super().__init__(lambda: None)

    def __str__(self) -> str:
        return "planted"


class Fault(Callback):
    """Raises on one rank, from the first validation until epoch ``until`` begins."""

    def __init__(self, rank: int, until: int) -> None:
        self.rank, self.until = rank, until
        self.armed = False
        self.fired = 0

    def __call__(self) -> None:
        if self.armed and dist.get_rank() == self.rank:
            self.fired += 1
            raise PlantedError

    def on_validation_start(self, trainer, pl_module):
        self.armed = not trainer.sanity_checking and trainer.current_epoch < self.until

    def on_train_epoch_start(self, trainer, pl_module):
        self.armed = self.armed and trainer.current_epoch < self.until

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (self(), function(*args, **kwargs))[1]

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (function(*args, **kwargs), self())[0]


@contextmanager
def put(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)  # an error if the name is gone
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def everywhere(function: Any, replacement: Any) -> Iterator[None]:
    """Replace a function of the package in every module that has imported it."""
    with ExitStack() as stack:
        for module in [one for name, one in sys.modules.items() if name.startswith("lightning_failures")]:
            for name in [name for name, value in vars(module).items() if value is function]:
                stack.enter_context(put(module, name, replacement))
        yield


class Speaks(ColourEncoder):
    """An encoder of images and texts that can fail while it embeds images; embeddings of texts are random."""

    def __init__(self, fault: Callable[[], None] = lambda: None) -> None:
        super().__init__(f"colours {next(NUMBERS)}")  # its embeddings are not in the cache
        self.fault = fault

    def encode_images(self, images):
        self.fault()
        return super().encode_images(images)

    def encode_texts(self, texts):
        rows = [torch.randn(self.dim, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
        return F.normalize(torch.stack(rows), dim=1)


class Numbered(Images):
    """Images with their indices; reading one can fail."""

    def __init__(self, size: int, seed: int, fault: Callable[[], None] = lambda: None) -> None:
        super().__init__(size, seed=seed)
        self.fault = fault

    def __getitem__(self, index):
        self.fault()
        return *super().__getitem__(index), index


class Decides(Upweight):
    """An intervention that fails after its decision."""

    fault: Fault

    def decide(self, examples, round):
        decision = super().decide(examples, round)
        self.fault()
        return decision


class Model(OracleClassifier):
    """A model that records the examples of each epoch; logging a key can fail."""

    def __init__(self, fault: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.fault = fault
        self.epochs: dict[int, list[int]] = {}

    def log(self, name, *args, **kwargs):
        if name == "failures/coverage":
            self.fault()
        super().log(name, *args, **kwargs)

    def training_step(self, batch, batch_idx):
        x, y, index = batch
        self.epochs.setdefault(self.current_epoch, []).extend(index.tolist())
        return F.cross_entropy(self.net(x), y)


class Analyses(Callback):
    """Records the epochs that were analysed."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_validation_end(self, trainer, pl_module):
        (failures,) = (one for one in trainer.callbacks if hasattr(one, "last_report"))
        epoch = None if failures.last_report is None else failures.last_report.epoch
        if epoch is not None and epoch not in self.epochs:
            self.epochs.append(epoch)


class CheckContext:
    """Options and replaced functions of one run with a fault."""

    def __init__(self, folder: Path, fault: Fault, on_error: str) -> None:
        self.folder, self.fault = folder, fault
        self.options: dict[str, Any] = {
            "encoder": Speaks(),
            "robust_encoder": ColourEncoder("robust"),
            "on_error": on_error,
            "pictures": False,
        }
        self.model = Model()
        self.size = 160
        self.stack = ExitStack()

    def before(self, owner: Any, name: str) -> None:
        self.stack.enter_context(put(owner, name, self.fault.before(getattr(owner, name))))

    def after(self, owner: Any, name: str) -> None:
        self.stack.enter_context(put(owner, name, self.fault.after(getattr(owner, name))))

    def calls_of(self, function: Any) -> None:
        self.stack.enter_context(everywhere(function, self.fault.before(function)))

    def intervene(self, *interventions: Any) -> None:
        self.size = 400
        self.options |= {"interventions": interventions, "robust_encoder": None}


def reads(case: CheckContext) -> None:
    case.options["read_batch"] = lambda outputs, batch: (case.fault(), BatchRecord())[1]


def embeds(case: CheckContext) -> None:
    case.options["encoder"] = Speaks(case.fault)


def logs(case: CheckContext) -> None:
    case.model = Model(case.fault)


def sends(case: CheckContext) -> None:
    case.before(FailureTree, "__reduce_ex__")


def draws(case: CheckContext) -> None:
    case.options["pictures"] = True
    case.calls_of(gallery.class_picture)


def judges(case: CheckContext) -> None:
    case.intervene(Upweight(factor=4.0))
    case.model.train_analysis_dataset = Numbered(96, 5, case.fault)


def picks(case: CheckContext) -> None:
    case.intervene(AddFiltered(Numbered(200, 11, case.fault), per_class=5, similarity=1.0))


def decides(case: CheckContext) -> None:
    one = Decides(factor=4.0)
    one.fault = case.fault
    case.intervene(one)


STAGES: dict[str, Callable[[CheckContext], None]] = {
    "reading the batch": reads,
    "grading": lambda case: case.calls_of(grading.grade_batch),
    "embedding": embeds,
    "looking up the cache": lambda case: case.before(EmbeddingStore, "get"),
    "joining the grades": lambda case: case.calls_of(grading.assemble_grades),
    "gathering": lambda case: case.after(dist, "gather"),
    "sending": sends,
    "directions": lambda case: case.calls_of(fit_failure_directions),
    "trees": lambda case: case.calls_of(fit_failure_tree),
    "captions": lambda case: case.calls_of(score_captions),
    "opening the sinks": lambda case: case.calls_of(sinks.writers_for),
    "logging a key": logs,
    # the analysis continues without these
    "pictures": draws,
    "a sink": lambda case: case.before(FileWriter, "write"),
    # interventions
    "judging the training set": judges,
    "picking from a pool": picks,
    "the decision": decides,
}
STEERS = ("judging the training set", "picking from a pool", "the decision")
ONLY_FIRST = ("opening the sinks", "pictures", "a sink")  # other ranks do not do these
GOES_ON = ("pictures", "a sink")
COSTS_A_METHOD = (  # the grades stand, and what needs no part of it
    *("embedding", "looking up the cache", "gathering", "sending", "directions", "trees", "captions"),
)


def run(folder: Path, stage: str, rank: int, on_error: str) -> dict[str, Any]:
    steers = stage in STEERS
    fault = Fault(rank, until=2 if stage == "pictures" else 1)  # pictures are drawn in the last epoch
    case = CheckContext(folder, fault, on_error)
    STAGES[stage](case)
    failures = callback(**case.options)
    analyses = Analyses()
    # the last epoch of a training makes no decision
    epochs = (2 if on_error == "warn" else 1) + int(steers)
    fitted = trainer(
        folder, fault, failures, analyses, max_epochs=epochs, strategy="ddp", devices=2, num_sanity_val_steps=0,
        use_distributed_sampler=True,
    )  # fmt: skip
    data = DataLoader(Numbered(96, 5), batch_size=16, shuffle=True)
    raised = None
    begin = time.monotonic()
    with case.stack, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fitted.fit(case.model, data, loader(case.size))
        except Exception as error:
            if on_error == "warn":
                raise
            raised = f"{type(error).__name__}: {error}"
        gc.collect()  # close the connections, as the end of a process would
    report = failures.last_report
    return {
        "seconds": time.monotonic() - begin,
        "fired": fault.fired,
        "raised": raised,
        "warnings": [text for one in caught if "FailureModes" in (text := str(one.message))],
        "steps": fitted.global_step,
        "analysed": None if report is None else report.epoch,
        "analyses": len(analyses.epochs),
        "report": None
        if report is None
        else {k: v for k, v in report.to_dict().items() if k not in ("timings", "run_id")},
        "epochs": case.model.epochs,
    }


def main(folder: Path, on_error: str, *stages: str) -> None:
    torch.set_num_threads(1)
    for rank in (0, 1):
        for stage in stages or STAGES:
            if rank and stage in ONLY_FIRST:
                continue
            if on_error == "raise" and stage in GOES_ON:
                continue
            print(f"{stage} on rank {rank}", flush=True)  # shows where a run hangs
            place = folder / f"{stage} {rank}"
            place.mkdir(parents=True, exist_ok=True)  # the folders that a run makes go with it if nothing was written
            seen = run(place / "run", stage, rank, on_error)
            (place / f"rank_{dist.get_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
