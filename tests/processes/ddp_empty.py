"""Run by test_processes.py on two ranks: evaluations in which the second rank has no batch."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from tests.helpers.toy import callback, loader, trainer
from tests.processes.ddp_fit import OnlyFirst, Recording, sampled

HOW = ("fit", "validate", "test")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for how in HOW:
        print(how, flush=True)  # shows where a run hangs
        failures, options = callback(), {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
        run, data = trainer(folder / how, failures, max_epochs=2, **options), sampled(OnlyFirst, 40)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if how == "fit":
                run.fit(Recording(), loader(64), data)
            else:
                getattr(run, how)(Recording(), data, verbose=False)
        told = [str(one.message) for one in caught if "FailureModes" in str(one.message)]
        seen = {"told": told, "steps": run.global_step, "analysed": failures.last_report is not None}
        (folder / f"{how}_{run.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
