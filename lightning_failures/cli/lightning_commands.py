"""Commands with model and data: LightningCLI and its Trainer with additional subcommands.

A new command is a method of :class:`FailureTrainer` and a line of :data:`~lightning_failures.cli.commands.COMMANDS`.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from torch.utils.data import DataLoader

from lightning_failures.callback import FailureModes
from lightning_failures.cli.commands import COMMANDS
from lightning_failures.cli.options import UsageError
from lightning_failures.core.atomic import write_atomically
from lightning_failures.doctor import quiet
from lightning_failures.doctor.command import diagnose, tell_unbuilt
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import RetrainHead
from lightning_failures.pools.embedder import run_job
from lightning_failures.pools.fitted import load_fitted
from lightning_failures.pools.job import PoolJob
from lightning_failures.pools.source import PoolSource, PoolSplit
from lightning_failures.regression import load_pins
from lightning_failures.report.findings import findings_lines, pattern_line
from lightning_failures.report.interventions import intervention_lines
from lightning_failures.report.pins import check_json, pin_table
from lightning_failures.report.run_folder import Run as OpenedRun
from lightning_failures.report.run_folder import open_run
from lightning_failures.report.tables import class_table
from lightning_failures.report.transfer import transfer, transfer_text
from lightning_failures.steering.forks.run import PAIRS, Run, fork_verdict
from lightning_failures.steering.former_files import RETRAINED
from lightning_failures.steering.last_layer import write_with_last_layer
from lightning_failures.trainer.batch_reader import BatchReader

Split = Literal["train", "validation", "test"]


class FailureTrainer(Trainer):
    """A Trainer whose additional methods are commands.

    LightningCLI makes the options and the help of each command from the signature and the docstring of its method.

    Attributes:
        make_run: Returns a new Trainer, model and data from the configuration; set for ``verdict``.
        status: Exit status of the command.
    """

    make_run: Callable[[], Run]
    status = 0

    def analyse(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
        split: Split = "validation",
        pictures: Literal["brief", "full"] = "brief",
        weights_only: bool | None = None,
    ) -> None:
        """Find the failure modes of a trained model on one split, which may be the training set.

        Args:
            model: The model.
            datamodule: The data.
            ckpt_path: Checkpoint with the weights. By default the weights of the model as configured.
            split: Part of the data. "train" is the training set in its own order, with its own transforms.
            pictures: "full" attacks features too, which takes minutes.
            weights_only: As in fit: refuse a checkpoint that holds more than tensors and plain values.
        """
        callbacks = self._required_failure_modes("analyse")
        for callback in callbacks:
            callback.on_error = "raise"  # an analysis that fails is a failure of this command
            callback.attacks = callback.attacks and pictures == "full"
        loading = {"ckpt_path": ckpt_path} | _given(weights_only=weights_only)
        self._evaluate(model, datamodule, split, loading | {"verbose": False})
        for callback in callbacks if self.is_global_zero else ():
            if callback.last_report is not None:
                report = callback.last_report.report
                print("\n".join(["", class_table(report), "", *findings_lines(report), pattern_line(report)]))

    def check_pins(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        pins: list[Path],
        ckpt_path: str | None = None,
        split: Split = "validation",
        json: bool = False,
        weights_only: bool | None = None,
    ) -> None:
        """Check pinned slices on a model: has a pattern that was fixed come back?

        The model is analysed as by `analyse`, without pictures. A slice has reopened if it fails significantly more
        often than the level that is stored with its pin, and than the rest of its class does now; the p-values are
        corrected for the number of pins. The exit status is 1 if a slice has reopened, is still open or could not be
        checked, else 0.

        Args:
            model: The model.
            datamodule: The data.
            pins: Files of pins, or folders with pins. "check-pins PINS" is short for "check-pins --pins PINS".
            ckpt_path: Checkpoint with the weights. By default the weights of the model as configured.
            split: Part of the data, as for `analyse`: that which the slices were pinned on.
            json: Print all checks as JSON on standard output, for machines.
            weights_only: As in fit: refuse a checkpoint that holds more than tensors and plain values.
        """
        callback, *others = self._required_failure_modes("check-pins")
        for one in (callback, *others):
            one.on_error, one.pictures, one.pins = "raise", False, () if one in others else pins
        load_pins(pins)  # what is wrong with the files is known before anything is read
        loading = {"ckpt_path": ckpt_path} | _given(weights_only=weights_only)
        with redirect_stdout(sys.stderr) if json else nullcontext():
            self._evaluate(model, datamodule, split, loading | {"verbose": False})
        checks = () if callback.last_report is None else callback.last_report.pins
        self.status = int(not checks or not all(check.holds for check in checks))
        if self.is_global_zero:
            print(check_json(checks) if json else pin_table(checks))

    def transfer(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        run: Path,
        ckpt_path: str | None = None,
        split: Split = "validation",
        json: bool = False,
        weights_only: bool | None = None,
    ) -> None:
        """Judge what a run of one network found on the failures of another one, on the same images.

        The model is analysed as by `analyse`, without pictures. For each class: how well the first run's direction
        ranks this model's failures, its error rate on the images that the first run flags, on those that the rule of
        its tree holds for, and on those nearest to its caption, each beside this model's own.

        Args:
            model: The model.
            datamodule: The data.
            run: The first run: its log folder, or its failures/ folder. "transfer RUN" is short for
                "transfer --run RUN".
            ckpt_path: Checkpoint with the weights. By default the weights of the model as configured.
            split: Part of the data, as for `analyse`: that which the first run analysed.
            json: Print everything as JSON on standard output, for machines.
            weights_only: As in fit: refuse a checkpoint that holds more than tensors and plain values.
        """
        callback, *others = self._required_failure_modes("transfer")
        for one in (callback, *others):
            one.on_error, one.pictures = "raise", False
        first = open_run(run)  # what is wrong with its files is known before anything is read
        loading = {"ckpt_path": ckpt_path} | _given(weights_only=weights_only)
        with redirect_stdout(sys.stderr) if json else nullcontext():
            self._evaluate(model, datamodule, split, loading | {"verbose": False})
        result = callback.last_report
        if result is None or not self.is_global_zero:
            return
        found = transfer(first, OpenedRun(Path(), result.report, (), table=result.table))
        print(dumps(found.to_dict(), indent=2) if json else transfer_text(found))

    def _evaluate(
        self, model: LightningModule, datamodule: LightningDataModule | None, split: Split, loading: dict[str, Any]
    ) -> None:
        """Run the validation or test loop on a split; ``loading`` says which checkpoint to load, and how."""
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
        """Test whether the interventions of the config help: continue a training with and without them.

        Both trainings of a pair resume from the checkpoint with the same seed. They are compared on the slice that
        was flagged when the interventions began, in the part of the validation set that nothing was fitted to.

        Args:
            model: The model.
            datamodule: The data.
            ckpt_path: Checkpoint written before the interventions began; ModelCheckpoint(save_top_k=-1) keeps one of
                each epoch. If the checkpoint holds no decision, the training first continues until one is made.
            epochs: Number of epochs with the interventions in effect.
            pairs: Number of pairs of trainings, each with its own seed. A single pair gives no verdict.
            seed: Seed from which the seeds of all pairs are derived.
            output: Folder for verdict.json.
            weights_only: As in fit: refuse a checkpoint that holds more than tensors and plain values.
        """

        def make_run() -> Run:
            run = self.make_run()
            return replace(run, data={**run.data, **_given(weights_only=weights_only)})

        verdict = fork_verdict(make_run, ckpt_path, epochs=epochs, pairs=pairs, seed=seed, folder=output)
        if self.is_global_zero:
            options = {"schema": 1, "checkpoint": ckpt_path, "epochs": epochs, "seed": seed}
            record = json.dumps(options | verdict.to_dict(), indent=2) + "\n"
            write_atomically(output / "verdict.json", record.encode())
            print(f"{verdict.sentence}\n\nVerdict: {output / 'verdict.json'}")

    def retrain_head(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        ckpt_path: str,
        head: str | None = None,
        spend_validation: bool = False,
        output: Path = Path("failures-retrained"),
        weights_only: bool | None = None,
    ) -> None:
        """Refit the last layer of a trained model, with the flagged and the unflagged examples of equal mass.

        The checkpoint is validated, its training set is read once, and a copy of the checkpoint with the new last layer
        is written. The options of a RetrainHead or MaskFeatures in the config apply; without one, the options of this
        command do.

        Args:
            model: The model.
            datamodule: The data.
            ckpt_path: Checkpoint with the weights.
            head: Name of the last layer. By default it is found.
            spend_validation: Fit to a part of the validation set, which is then in no number of the report, instead of
                the training set.
            output: Folder for retrained.ckpt.
            weights_only: As in fit: refuse a checkpoint that holds more than tensors and plain values.
        """
        callback = self._required_failure_modes("retrain-head")[0]
        configured = [one for one in callback.interventions if one.refits_last_layer]
        given = RetrainHead(head=head, data="validation" if spend_validation else "train")
        callback.prepare_retraining(configured[0] if configured else given)
        loading = _given(weights_only=weights_only)
        self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, **loading)
        if not self.is_global_zero:
            return
        assert callback.last_report is not None  # errors are raised
        entries = callback.last_report.report.interventions
        print("\n".join([*intervention_lines(callback.last_report.report), *callback.last_report.report.notes]))
        if not entries or not entries[0]["changes_training"]:
            print("The last layer is unchanged, so no checkpoint is written.")
            return
        path = output / RETRAINED
        write_with_last_layer(Path(ckpt_path), path, model, entries[0]["head"])
        print(f"Checkpoint: {path}")

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
        shop: int | None = None,
    ) -> None:
        """Embed a pool of any size, and find its hardest examples by the failure directions of a run.

        The predict loader reads the images and the encoder of the callback embeds them; the model does not run. Any
        strategy and number of nodes is supported. After an interruption the same command embeds only what is missing,
        also with another number of processes.

        Args:
            model: The model, for its data hooks.
            datamodule: The data.
            directions: A directions.safetensors file, or the log folder of a run. Without directions the pool is only
                embedded; a later call with directions scores it without reading an image again.
            k: Number of the hardest examples of each class to list.
            output: Folder for the shards, pool.json and hardest.json. All nodes must share it.
            split: The loader that reads the pool: predict, train, validation or test. Its order does not matter.
            shard_size: Examples per file. By default 256 to 8,192, depending on the size of the pool.
            keep_embeddings: Keep the embeddings in the shards, mostly in float16. Without them, scoring with other
                directions embeds the pool again.
            shop: Number of images to label for each class with a pattern: those that the direction flags, spread over
                the candidates. They are written to OUTPUT/shop for people, Label Studio and FiftyOne, with the gain
                that can be expected. The pool needs no labels: without one, the class of an image is a guess.
        """
        callback = self._required_failure_modes("embed", encoder=True)[0]
        assert callback.encoder is not None
        for name, value in (("k", k), ("shard_size", shard_size), ("shop", shop)):
            if value is not None and value < 1:
                raise ConfigurationError(f"embed --{name} must be at least 1, got {value}.")
        if shop is not None and (directions is None or not keep_embeddings):
            missing = "--directions with the folder of a run" if directions is None else "--keep_embeddings=true"
            raise ConfigurationError(f"embed --shop needs {missing}.")
        source = PoolSource(model, datamodule, split)
        source.check()
        job = PoolJob(
            source,
            callback.encoder,
            BatchReader(callback.read_batch, callback.normalization, callback.failed_below),
            output,
            fitted=None if directions is None else load_fitted(directions),
            k=k,
            class_names=callback.class_names,
            task=callback.task,
            device=callback.device,
            shard_size=shard_size,
            keep_embeddings=keep_embeddings,
            shop=shop,
        )
        run_job(self, job)

    def doctor(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        json: bool = False,
    ) -> None:
        """Check a configuration before training: encoders, data, processes, loggers, time and memory.

        Two batches are validated in one process, with all output in a temporary folder. Nothing is trained. Each line
        says "ok", "warning" or "problem", the latter two with a remedy, or "skipped". The exit status is 1 if there is
        a problem, else 0.

        Args:
            model: The model.
            datamodule: The data.
            json: Print all findings as JSON on standard output, for machines.
        """
        if self.is_global_zero:
            self.status = diagnose(self, model, datamodule, as_json=json)

    def _required_failure_modes(self, command: str, *, encoder: bool = False) -> list[FailureModes]:
        """Return the callbacks of the config, of which there must be one, and the first have an encoder if asked."""
        callbacks = self.callbacks  # type: ignore[attr-defined]
        found = [callback for callback in callbacks if isinstance(callback, FailureModes)]
        if not found or (encoder and found[0].encoder is None):
            raise ConfigurationError(
                f"`{command}` needs lightning_failures.FailureModes{' with an encoder' if encoder else ''} among"
                " trainer.callbacks of the config (see configs/digits.yaml)."
            )
        return found


# LightningCLI finds the method of a subcommand by its name
setattr(FailureTrainer, "check-pins", FailureTrainer.check_pins)
setattr(FailureTrainer, "retrain-head", FailureTrainer.retrain_head)


class FailureCLI(LightningCLI):
    """LightningCLI with the methods of :class:`FailureTrainer` as additional subcommands."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser that raises its errors, of which one line is shown."""
        return super().init_parser(**{"exit_on_error": False, **kwargs})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return for each subcommand the parameters of its method that are no options of the command line."""
        builtin = LightningCLI.subcommands()
        additional = [name for name, command in COMMANDS.items() if not command.function and name not in builtin]
        return builtin | {name: {"model", "datamodule"} for name in additional}

    def before_verdict(self) -> None:
        """Give the Trainer a way to build each fork from the configuration."""
        self.trainer.make_run = self._make_run  # type: ignore[attr-defined]

    def _make_run(self) -> Run:
        self._set_seed()
        self.instantiate_classes()
        return Run(self.trainer, self.model, {} if self.datamodule is None else {"datamodule": self.datamodule})


def run_with_model(command: str, arguments: Sequence[str]) -> int:
    """Run a command with model and data from a LightningCLI config; return its exit status."""
    if command != "doctor":
        try:
            return _run(command, arguments)
        except MisconfigurationException as error:  # of Lightning, about options; doctor has remedies for some
            raise ConfigurationError(f"{command}: {error}") from error
    with quiet():
        try:
            return _run(command, arguments)
        except UsageError:
            raise
        except Exception as error:  # of the user's classes, or of the Trainer: a finding like any other
            as_json = any(argument.startswith("--json") for argument in arguments)
            return tell_unbuilt(error, as_json=as_json)


def _run(command: str, arguments: Sequence[str]) -> int:
    # about Lightning's own calls of jsonargparse: nothing that a user could change
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    whole_line = [command, *_with_positional(command, list(arguments))]
    try:
        cli = FailureCLI(
            trainer_class=FailureTrainer,
            save_config_kwargs={"overwrite": True},
            # LightningCLI reads the command line by itself, and warns if it is passed as well
            args=None if whole_line == sys.argv[1:] else whole_line,
            parser_kwargs={"prog": "lightning-failures"},
        )
    except ArgumentError as error:
        raise UsageError(f"{command}: {shortened(error.message)}") from error
    return int(getattr(cli.trainer, "status", 0))


def shortened(message: str, limit: int = 600) -> str:
    r"""Return an error of jsonargparse as one line: its end says most, its beginning where.

    >>> shortened("Key 'model':\n  Import failed"), shortened("0123456789", 6)
    ("Key 'model': Import failed", '01 ... 6789')
    """
    text = " ".join(message.split())
    if len(text) <= limit:
        return text
    return f"{text[: limit // 3]} ... {text[-(limit * 2 // 3) :]}"


def _with_positional(command: str, arguments: list[str]) -> list[str]:
    """Return the arguments with the first ones, up to an option, as the value of the command's positional option.

    >>> _with_positional("check-pins", ["pins", "--json", "true"]), _with_positional("transfer", ["logs/version_3"])
    (['--pins=["pins"]', '--json', 'true'], ['--run=logs/version_3'])
    """
    end = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    about = COMMANDS[command]
    if not end or not about.positional:
        return arguments
    if about.several:
        return [f"--{about.positional}={json.dumps(arguments[:end])}", *arguments[end:]]
    return [f"--{about.positional}={arguments[0]}", *arguments[1:]]


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that have a value: Lightning before 2.6 lacks some of them."""
    return {name: value for name, value in options.items() if value is not None}


def _in_order(loader: Any) -> DataLoader[Any]:
    """Return a loader of the same data that neither shuffles nor drops the last batch."""
    if not isinstance(loader, DataLoader):
        raise ConfigurationError(f"analyse --split train needs one DataLoader, got {type(loader).__name__}.")
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size or 1,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )
