"""``lightning-failures``: one command for each thing that people do with the package."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import auto_cli
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from lightning_failures.adapters.forks import PAIRS, Run, fork_verdict
from lightning_failures.atomic import write_atomically
from lightning_failures.callback import FailureModes
from lightning_failures.errors import ConfigurationError, DataError, FailureModesError
from lightning_failures.interventions.told import intervention_lines
from lightning_failures.records import FailureReport
from lightning_failures.text import class_table, clean, enrichment_lines, number

__all__ = ["main"]

Split = Literal["train", "validation", "test"]


class FailureTrainer(Trainer):
    """A Trainer that can analyse any split of a datamodule, and fork a training."""

    make_run: Callable[[], Run]

    def analyse(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        split: Split = "validation",
        weights_only: bool | None = None,
    ) -> None:
        """Find the failure modes of a trained model on one split, the training set too.

        Args:
            model: The model.
            datamodule: The data.
            ckpt_path: Checkpoint with the weights. Without it the weights are those of the model as configured.
            split: Which part of the data; "train" is the training set in its order, with its own transforms.
            weights_only: As in fit: whether the checkpoint may hold tensors and plain values only.
        """
        if not any(isinstance(callback, FailureModes) for callback in self.callbacks):  # type: ignore[attr-defined]
            raise ConfigurationError(
                "`analyse` needs lightning_failures.FailureModes among trainer.callbacks of the config (see"
                " configs/digits.yaml)."
            )
        for callback in self.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FailureModes):
                callback.on_error = "raise"  # an analysis that fails is a failure of this command
        loading = {"ckpt_path": ckpt_path} | _given(weights_only=weights_only)
        if split == "test":
            self.test(model, datamodule=datamodule, **loading)
        elif split == "validation":
            self.validate(model, datamodule=datamodule, **loading)
        else:
            source = datamodule or model
            if datamodule is not None:
                datamodule.prepare_data()
                datamodule.setup("fit")
            self.validate(model, dataloaders=_in_order(source.train_dataloader()), **loading)

    def verdict(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        ckpt_path: str,
        epochs: int = 1,
        pairs: int = PAIRS,
        seed: int = 0,
        output: Path = Path("failures-verdict"),
        weights_only: bool | None = None,
    ) -> None:
        """Tell whether the interventions of the config help: train on from a checkpoint with them and without.

        Both trainings of a pair resume from the checkpoint and have the same seed. They are compared on the part of
        the validation set that nothing was fitted to, on the slice that was flagged when the interventions began.

        Args:
            model: The model.
            datamodule: The data.
            ckpt_path: Checkpoint written before the interventions began, as ModelCheckpoint(save_top_k=-1) keeps one
                of each epoch. Where it holds no decision yet, the training goes on until there is one.
            epochs: How long to train with the interventions in effect.
            pairs: Number of pairs of trainings, each with a seed of its own. One pair says nothing.
            seed: Of all of them.
            output: Folder for verdict.json.
            weights_only: As in fit: whether the checkpoint may hold tensors and plain values only.
        """

        def make_run() -> Run:
            run = self.make_run()
            return replace(run, data={**run.data, **_given(weights_only=weights_only)})

        found = fork_verdict(make_run, ckpt_path, epochs=epochs, pairs=pairs, seed=seed, folder=output)
        if self.is_global_zero:
            known = {"schema": 1, "checkpoint": ckpt_path, "epochs": epochs, "seed": seed} | found.to_dict()
            write_atomically(output / "verdict.json", (json.dumps(known, indent=2) + "\n").encode())
            print(f"{found.sentence}\n\nVerdict: {output / 'verdict.json'}")


class FailureCLI(LightningCLI):
    """LightningCLI with ``analyse`` and ``verdict`` beside Lightning's own subcommands."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name -> arguments that the configuration cannot give."""
        return LightningCLI.subcommands() | {key: {"model", "datamodule"} for key in ("analyse", "verdict")}

    def before_verdict(self) -> None:
        """Every fork is made from the configuration anew."""
        self.trainer.make_run = self._make_run  # type: ignore[attr-defined]

    def _make_run(self) -> Run:
        self._set_seed()
        self.instantiate_classes()
        return Run(self.trainer, self.model, {} if self.datamodule is None else {"datamodule": self.datamodule})


def report(run: Path) -> None:
    """Show the last report of a run again, from its files alone.

    Args:
        run: A report.json, or a folder that holds one: the demo's output, the log folder of a run, or its failures/.
    """
    places = [run] if run.is_file() else [run / "report.json", run / "failures" / "report.json"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ConfigurationError(f"No report.json in {run}. A run keeps it in <log_dir>/failures/report.json.")
    try:
        loaded = FailureReport.from_json(found.read_bytes())
    except DataError as error:
        raise ConfigurationError(f"{found} is no report of lightning_failures: {error}") from error
    print(f"{found}: epoch {loaded.epoch}, step {loaded.global_step}, {loaded.examples} examples, "
          f"accuracy {number(loaded.accuracy)}\n\n{class_table(loaded)}")  # fmt: skip
    if told := enrichment_lines(loaded):
        print("\nKnown attributes, over-represented among the flagged:\n  " + "\n  ".join(told))
    if acted := intervention_lines(loaded):
        print("\nInterventions:\n  " + "\n  ".join(acted))
    rules = [
        f"  {clean(group.class_name)} ({clean(group.grouping)} group): {clean(leaf.rule)}:"
        f" error rate {number(leaf.error_rate)} (base {number(group.base_error_rate)}),"
        f" error coverage {number(leaf.error_coverage)}"
        for group in loaded.groups
        if group.pattern
        for leaf in group.leaves
        if leaf.valid
    ]
    if rules:
        print("\nValid leaves of the failure trees:\n" + "\n".join(rules))


def _demo(arguments: Sequence[str]) -> None:
    from lightning_failures.demo import demo

    auto_cli(demo, args=list(arguments), prog="lightning-failures demo", as_positional=False)


def _report(arguments: Sequence[str]) -> None:
    auto_cli(report, args=list(arguments), prog="lightning-failures report")


def _lightning(command: str) -> Callable[[Sequence[str]], None]:
    def run(arguments: Sequence[str]) -> None:
        # about Lightning's own calls of jsonargparse: nothing that a user could change
        os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        FailureCLI(
            trainer_class=FailureTrainer,
            save_config_kwargs={"overwrite": True},
            # LightningCLI reads the command line by itself, and warns if it is handed over as well
            args=None if [command, *arguments] == sys.argv[1:] else [command, *arguments],
            parser_kwargs={"prog": "lightning-failures"},
        )

    return run


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "demo": ("train on coloured digits with a planted shortcut, offline, and show what was found", _demo),
    "fit": ("train with a LightningCLI config, e.g. --config configs/digits.yaml", _lightning("fit")),
    "validate": ("grade and analyse the validation split", _lightning("validate")),
    "test": ("grade and analyse the test split", _lightning("test")),
    "analyse": ("analyse a checkpoint on any split: --split train|validation|test", _lightning("analyse")),
    "verdict": ("tell whether the interventions of a config help: fork a checkpoint", _lightning("verdict")),
    "report": ("show the last report of a run", _report),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help") or command not in COMMANDS:
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {text}" for name, (text, _) in COMMANDS.items()]
        known = command in ("-h", "--help")
        print(
            ("" if known else f"lightning-failures: no command {command!r}\n\n")
            + "usage: lightning-failures COMMAND [options]\n\n"
            + "\n".join(lines)
            + "\n\nEach command has its own --help.",
            file=sys.stdout if known else sys.stderr,
        )
        return 0 if known else 2
    try:
        COMMANDS[command][1](rest)
    except FailureModesError as error:
        print(f"lightning-failures: {error}", file=sys.stderr)
        return 1
    return 0


def _given(**options: Any) -> dict[str, Any]:
    """Without those that Lightning before 2.6 does not know."""
    return {name: value for name, value in options.items() if value is not None}


def _in_order(loader: Any) -> DataLoader[Any]:
    """The same data without shuffling, and without dropping the last batch."""
    if not isinstance(loader, DataLoader):
        raise ConfigurationError(f"analyse --split train needs one DataLoader, got {type(loader).__name__}.")
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size or 1,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )
