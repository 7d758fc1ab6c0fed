"""Run by test_disk.py: trainings on disks that fail, in a process that can mount file systems or give up its rights.

``python -m tests.processes.disk_fit FOLDER full`` mounts small file systems below FOLDER, so it needs a mount namespace
(``unshare``); ``python -m tests.processes.disk_fit FOLDER denied`` continues as a user without write permission. Each
prints one JSON object: scenario -> what happened.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from lightning_failures.analysis import AnalysisResult
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.directions import FailureDirections
from lightning_failures.errors import FailureModesError
from lightning_failures.interventions import Upweight
from lightning_failures.interventions.synthesis.ledger import Ledger, LedgerRow
from lightning_failures.report.diary_storage import load_diary
from lightning_failures.report.gallery import Gallery, Picture, Row, Tile
from lightning_failures.writers import CSVWriter, FileWriter, TensorBoardWriter, each_writer
from tests.end_to_end.test_interventions import steered
from tests.end_to_end.test_synthetic_fit import Speaks, adding
from tests.end_to_end.test_synthetic_fit import fit as synthetic_fit
from tests.helpers.toy import OracleClassifier, callback, loader, trainer

EPOCHS = 2


def findings(report: FailureReport | None) -> dict | None:
    """Return a report as a dictionary, without its timings and its run."""
    return None if report is None else report.to_dict() | {"timings": None, "run_id": None}


def fit(cache: Path, root: Path) -> dict:
    """Train with the callback as users have it (on_error="warn"); return epochs, report and warnings."""
    torch.manual_seed(0)
    failures = callback(pictures=True, cache_folder=cache, on_error="warn", permutations=9)
    run = trainer(root, failures, max_epochs=EPOCHS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(OracleClassifier(), loader(), loader(seed=1))
    messages = [str(warning.message) for warning in caught]
    return {
        "epochs": run.current_epoch,
        "report": findings(failures.last_report),
        "warnings": [text for text in messages if "embedding cache" in text or "FailureModes" in text],
    }


READERS = {
    "directions": FailureDirections.load,
    "examples": ExampleTable.load,
    "table": ExampleTable.load,
    "modes": load_diary,
}


def halves(folder: Path) -> list[str]:
    """Return the incomplete files in a folder and the temporary files that a writer has left."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file() and path.name != "filler"):
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".safetensors" and "v2" not in path.parts:
                READERS[path.stem](path)
            elif path.suffix == ".tmp" or path.name.startswith(".writing") or not path.stat().st_size:
                raise ValueError("left behind, or empty")
        except (ValueError, OSError, SyntaxError) as error:
            found.append(f"{path.relative_to(folder)}: {error}")
    return found


def mounted(folder: Path, *, free: int) -> Path:
    """Mount a file system with ``free`` bytes of space."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    (folder / "filler").write_bytes(b"x" * (2**18 - free))
    return folder


def read_only(folder: Path) -> Path:
    """Mount a read-only file system."""
    mounted(folder, free=2**17)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    return folder


def sinks(folder: Path) -> dict:
    """Use each writer on a full disk; return their errors and the state of the ledger."""
    result = AnalysisResult(FailureReport(9, 0.5, (ClassReport("cat " * 2000, 9, accuracy=0.5),), epoch=1))
    image = torch.randint(0, 255, (3, 200, 200), dtype=torch.uint8)
    gallery = Gallery((Picture("classes/cat", (Row("", (Tile(image),)),)),))
    board = TensorBoardLogger(folder / "board", name="", version="")
    places = [FileWriter(folder / "files"), CSVWriter(folder / "csv"), TensorBoardWriter(board)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        failed = each_writer(places, lambda sink: (sink.write(result, 1), sink.show(result, gallery, 1)))
    outcome = {type(sink).__name__: type(error).__name__ for sink, error in failed}
    ledger = Ledger(folder / "ledger")
    row = LedgerRow("model", "mit", "a red three", 7, 3, "three", "hard caption", 1, 2)
    try:
        for _ in range(50):
            ledger.append(row, image)
    except FailureModesError as error:
        outcome["Ledger"] = type(error).__name__
    whole = all(ledger.image(number).shape == (3, 200, 200) for number in ledger.images)
    return outcome | {"rows of the ledger": len(Ledger(ledger.folder).rows) == len(ledger.images) and whole}


def steer(root: Path) -> dict:
    """Train with generated images and a rollback, which write files of their own."""
    failures = steered(
        Upweight(factor=2.0), adding(every_n_epochs=9), encoder=Speaks(), auto_rollback=True, on_error="warn"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = synthetic_fit(root, failures, epochs=3)
    messages = [str(warning.message) for warning in caught if "FailureModes" in str(warning.message)]
    return {"examples": list(module.sizes.values()), "warnings": messages}


def full(place: Path) -> dict:
    """Train on full and on read-only file systems."""
    found = {"good": fit(place / "cache", place / "logs")}
    found["full cache"] = fit(mounted(place / "full", free=4096), place / "logs 1")
    found["full log folder"] = fit(place / "cache", mounted(place / "full log", free=0))
    found["log folder that fills up"] = fit(place / "cache", mounted(place / "filling", free=20_000))
    found["read-only cache"] = fit(read_only(place / "ro") / "below", place / "logs 2")
    found["read-only log folder"] = fit(place / "cache", read_only(place / "ro log"))
    found["steered"] = steer(place / "steered")
    found["steered, full"] = steer(mounted(place / "steered full", free=60_000))
    found["sinks"] = sinks(mounted(place / "sinks", free=8192))
    found["halves"] = [half for folder in place.iterdir() for half in halves(folder) if folder.name != "cache"]
    return found


def denied(place: Path) -> dict:
    """Train in folders of another user."""
    found = {"good": fit(place / "cache", place / "logs")}
    closed = place / "closed"
    closed.mkdir(mode=0o555)
    if os.geteuid() == 0:
        os.setuid(65534)  # irreversible; everything needed is loaded and compiled
    found["denied"] = fit(closed / "cache", closed)
    return found


def main() -> None:
    torch.set_num_threads(1)
    place, kind = sys.argv[1:]
    print(json.dumps({"full": full, "denied": denied}[kind](Path(place))))


if __name__ == "__main__":
    main()
