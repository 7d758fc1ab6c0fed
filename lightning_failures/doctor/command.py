"""``lightning-failures doctor``: findings as text, one by one, or all of them as JSON."""

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

_CLEAR_LINE = "\r\x1b[K"


def diagnose(
    trainer: Trainer, model: LightningModule, datamodule: LightningDataModule | None = None, *, as_json: bool = False
) -> int:
    """Examine a configuration and print the findings; return the exit status, 1 if there is a problem."""
    start = time.perf_counter()
    interactive = sys.stderr.isatty() and not as_json

    def begin(check: str) -> None:
        if interactive:
            print(f"{_CLEAR_LINE}... {check}", end="", file=sys.stderr, flush=True)

    findings: list[Finding] = []
    with (
        redirect_stdout(sys.stderr) if as_json else nullcontext()
    ):  # stdout holds JSON only, whatever the user's code prints
        for finding in examine(trainer, model, datamodule, begin=begin):
            if interactive:
                print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
            if not as_json:
                print(*table_lines(finding, after=findings[-1] if findings else None), sep="\n", flush=True)
            findings.append(finding)
    return _print_verdict(findings, time.perf_counter() - start, as_json=as_json)


def tell_unbuilt(error: Exception, *, as_json: bool = False) -> int:
    """Print that the model, the data or the Trainer could not be built; return the exit status."""
    reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    other_machine = "If the hardware is on another machine, check with --trainer.accelerator=cpu --trainer.devices=1"
    remedy = other_machine if isinstance(error, MisconfigurationException) else ""
    finding = replace(problem(f"The configuration cannot be built here. {reason}", remedy), check="configuration")
    if not as_json:
        print(*table_lines(finding), sep="\n")
    return _print_verdict([finding], None, as_json=as_json)


def _print_verdict(findings: Sequence[Finding], seconds: float | None, *, as_json: bool) -> int:
    failed = _count(findings, "problem")
    if as_json:
        summary = {
            "schema": 1,
            "ready": not failed,
            "problems": failed,
            "warnings": _count(findings, "warning"),
            "findings": [finding.to_dict() for finding in findings],
        }
        print(json.dumps(summary, indent=2))
    else:
        print("", *verdict_lines(findings, seconds), sep="\n")
    return 1 if failed else 0


def _count(findings: Iterable[Finding], status: str) -> int:
    return sum(finding.status == status for finding in findings)
