"""``lightning-failures doctor``: findings as they come for people, or all of them in JSON for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_failures.doctor import Finding, examine
from lightning_failures.doctor.findings import problem, table_lines, verdict_lines

_CLEAR = "\r\x1b[K"


def diagnose(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None = None, *, as_json: bool = False
) -> int:
    """Examine a configuration and tell what was found; return the exit status, 1 if there is a problem."""
    start = time.perf_counter()
    watched = sys.stderr.isatty() and not as_json

    def begin(check: str) -> None:
        if watched:
            print(f"{_CLEAR}... {check}", end="", file=sys.stderr, flush=True)

    findings: list[Finding] = []
    with redirect_stdout(sys.stderr) if as_json else nullcontext():  # JSON alone, whatever the user's code prints
        for finding in examine(trainer, model, datamodule, begin=begin):
            if watched:
                print(_CLEAR, end="", file=sys.stderr, flush=True)
            if not as_json:
                print(*table_lines(finding, after=findings[-1] if findings else None), sep="\n", flush=True)
            findings.append(finding)
    return _conclude(findings, time.perf_counter() - start, as_json=as_json)


def tell_unbuilt(error: Exception, *, as_json: bool = False) -> int:
    """Tell that model, data or Trainer could not even be made; return the exit status."""
    told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    lacking = "If only this machine lacks it, say what it has: --trainer.accelerator=cpu --trainer.devices=1"
    remedy = lacking if isinstance(error, MisconfigurationException) else ""
    finding = replace(problem(f"It cannot be built here. {told}", remedy), check="configuration")
    if not as_json:
        print(*table_lines(finding), sep="\n")
    return _conclude([finding], None, as_json=as_json)


def _conclude(findings: Sequence[Finding], seconds: float | None, *, as_json: bool) -> int:
    failed = _count(findings, "problem")
    if as_json:
        told = {
            "schema": 1,
            "ready": not failed,
            "problems": failed,
            "warnings": _count(findings, "warning"),
            "findings": [finding.to_dict() for finding in findings],
        }
        print(json.dumps(told, indent=2))
    else:
        print("", *verdict_lines(findings, seconds), sep="\n")
    return 1 if failed else 0


def _count(findings: Iterable[Finding], status: str) -> int:
    return sum(finding.status == status for finding in findings)
