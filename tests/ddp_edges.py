"""Run by test_callback_edges.py in two real processes: something fails on one; none may hang or stop training."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from lightning_failures.adapters import collector, explaining
from tests.toy import ColourEncoder, OracleClassifier, callback, loader, trainer


class UnpicklableError(Exception):
    """Cannot be sent to another process."""

    def __init__(self, one, two):
        super().__init__(lambda: (one, two))

    def __str__(self):
        return "planted"


class FailsOnRankOne(ColourEncoder):
    def encode_images(self, images):
        if torch.distributed.get_rank() == 1:
            raise RuntimeError("planted")
        return super().encode_images(images)


def plant(where: str) -> dict:
    """Break one thing; returns options of the callback."""
    if where == "embedding":
        return {"encoder": FailsOnRankOne()}

    def fail(*args, **kwargs):
        raise UnpicklableError(1, 2)

    if where == "analysis":
        explaining.analyse = fail
    if where == "cache":
        look_up = collector.Lens.look_up
        collector.Lens.look_up = lambda *args: fail() if torch.distributed.get_rank() == 1 else look_up(*args)
    return {}


def main(folder: Path, where: str) -> None:
    torch.set_num_threads(1)
    modes = callback(permutations=9, pictures=False, on_error="warn")
    run = trainer(folder, modes, strategy="ddp", devices=2, num_sanity_val_steps=0, use_distributed_sampler=True)
    modes.encoder = plant(where).get("encoder", modes.encoder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(OracleClassifier(), loader(32), loader(32))
    told = [str(w.message) for w in caught if "FailureModes" in str(w.message)]
    seen = {"told": told, "steps": run.global_step, "analysed": modes.last_report is not None}
    (folder / f"rank_{run.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
