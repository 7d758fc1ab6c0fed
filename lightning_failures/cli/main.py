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

from lightning_failures.callback import FailureModes
from lightning_failures.cli.report import diff, report
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import printable
from lightning_failures.doctor import quiet
from lightning_failures.doctor.command import diagnose, tell_unbuilt
from lightning_failures.errors import ConfigurationError, FailureModesError
from lightning_failures.pools.embedder import run_job
from lightning_failures.pools.fitted import load_fitted
from lightning_failures.pools.job import PoolJob
from lightning_failures.pools.source import PoolSource, PoolSplit
from lightning_failures.steering.forks.run import PAIRS, Run, fork_verdict
from lightning_failures.trainer.batch_reader import BatchReader

Split = Literal["train", "validation", "test"]


class FailureTrainer(Trainer):
    """A Trainer that can analyse any split of a datamodule, and fork a training."""

    make_run: Callable[[], Run]
    status = 0

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

    def embed(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        directions: Path | None = None,
        k: int = 100,
        output: Path = Path("failures-pool"),
        split: PoolSplit = "predict",
        shard_size: int | None = None,
        keep_embeddings: bool = True,
    ) -> None:
        """Embed a pool of any size, and find its hardest examples by the failure directions of a run.

        The images are read by the predict loader and seen through the encoder of the callback; the model is not run.
        Any strategy and number of nodes will do. What was done stays: after an interruption the same command does the
        rest, with as many processes as there are then.

        Args:
            model: The model, for its data hooks.
            datamodule: The data.
            directions: directions.safetensors, or the log folder of a run, which has one. Without it the pool is only
                embedded; the command can score it later without reading an image again.
            k: How many of the hardest examples of each class to list.
            output: Folder for the shards, pool.json and hardest.json. On several nodes all must share it.
            split: Whose loader gives the pool: predict, train, validation or test. Its order does not matter.
            shard_size: Examples in a file. By default 256 to 8,192, by the size of the pool.
            keep_embeddings: Keep them in the shards, mostly in float16. Without them, other directions later mean
                embedding anew.
        """
        callback = next((c for c in self.callbacks if isinstance(c, FailureModes)), None)  # type: ignore[attr-defined]
        if callback is None or callback.encoder is None:
            raise ConfigurationError(
                "`embed` needs lightning_failures.FailureModes with an encoder among trainer.callbacks of the config"
                " (see configs/digits.yaml)."
            )
        for name, value in (("k", k), ("shard_size", shard_size)):
            if value is not None and value < 1:
                raise ConfigurationError(f"embed --{name} must be at least 1, got {value}.")
        source = PoolSource(model, datamodule, split)
        source.check()
        job = PoolJob(
            source,
            callback.encoder,
            BatchReader(callback.read_batch, callback.normalization),
            output,
            fitted=None if directions is None else load_fitted(directions),
            k=k,
            class_names=callback.class_names,
            task=callback.task,
            device=callback.device,
            shard_size=shard_size,
            keep_embeddings=keep_embeddings,
        )
        run_job(self, job)

    def doctor(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        json: bool = False,
    ) -> None:
        """Look a configuration over before it is trained: encoders, data, processes, loggers, time and memory.

        Two batches are validated in one process, with all that is written in a temporary folder. Nothing is trained.
        Each line is "ok", "warning", "problem", with what to do about it, or "skipped". The exit status is 1 if there
        is a problem, else 0.

        Args:
            model: The model.
            datamodule: The data.
            json: For machines: all findings as JSON on standard output.
        """
        if self.is_global_zero:
            self.status = diagnose(self, model, datamodule, as_json=json)


class FailureCLI(LightningCLI):
    """LightningCLI with ``analyse``, ``verdict`` and ``embed`` beside Lightning's own subcommands."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name -> arguments that the configuration cannot give."""
        own = ("analyse", "verdict", "embed", "doctor")
        return LightningCLI.subcommands() | {key: {"model", "datamodule"} for key in own}

    def before_verdict(self) -> None:
        """Every fork is made from the configuration anew."""
        self.trainer.make_run = self._make_run  # type: ignore[attr-defined]

    def _make_run(self) -> Run:
        self._set_seed()
        self.instantiate_classes()
        return Run(self.trainer, self.model, {} if self.datamodule is None else {"datamodule": self.datamodule})


def _demo(arguments: Sequence[str]) -> None:
    from lightning_failures.cli.demo import demo

    auto_cli(demo, args=list(arguments), prog="lightning-failures demo", as_positional=False)


def _lightning(command: str) -> Callable[[Sequence[str]], int]:
    def run(arguments: Sequence[str]) -> int:
        # about Lightning's own calls of jsonargparse: nothing that a user could change
        os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        cli = FailureCLI(
            trainer_class=FailureTrainer,
            save_config_kwargs={"overwrite": True},
            # LightningCLI reads the command line by itself, and warns if it is handed over as well
            args=None if [command, *arguments] == sys.argv[1:] else [command, *arguments],
            parser_kwargs={"prog": "lightning-failures"},
        )
        return int(getattr(cli.trainer, "status", 0))

    return run


def _doctor(arguments: Sequence[str]) -> int:
    with quiet():
        try:
            return _lightning("doctor")(arguments)
        except Exception as error:  # of the user's classes, or of the Trainer
            return tell_unbuilt(error, as_json=any(one.startswith("--json") for one in arguments))


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int | None]]] = {
    "demo": ("train on coloured digits with a planted shortcut, offline, and show what was found", _demo),
    "fit": ("train with a LightningCLI config, e.g. --config configs/digits.yaml", _lightning("fit")),
    "validate": ("grade and analyse the validation split", _lightning("validate")),
    "test": ("grade and analyse the test split", _lightning("test")),
    "analyse": ("analyse a checkpoint on any split: --split train|validation|test", _lightning("analyse")),
    "verdict": ("tell whether the interventions of a config help: fork a checkpoint", _lightning("verdict")),
    "embed": ("embed a pool of any size, and find its hardest examples", _lightning("embed")),
    "doctor": ("look a config over before it is trained: data, encoders, loggers, time, memory", _doctor),
    "report": ("show the last report of a run, and write it as one HTML file", report),
    "diff": ("compare two runs: failures and failure modes that are fixed, new, persistent", diff),
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
        return COMMANDS[command][1](rest) or 0
    except FailureModesError as error:
        print(printable(f"lightning-failures: {error}"), file=sys.stderr)
        return 1


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
