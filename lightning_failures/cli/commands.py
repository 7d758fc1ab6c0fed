"""The table of all commands. It imports nothing, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command of ``lightning-failures``.

    Attributes:
        summary: One line for ``lightning-failures --help``.
        function: ``"module:function"`` of a command without model and data. The function takes the arguments, a list of
            strings, and returns the exit status, or None for 0. Empty for a command with model and data: the method of
            the same name of :class:`~lightning_failures.cli.lightning_commands.FailureTrainer`.
        positional: Option that the first arguments, up to one that begins with "-", are values of.
        several: Whether that option takes a list.
    """

    summary: str
    function: str = ""
    positional: str = ""
    several: bool = False


COMMANDS = {
    "demo": Command(
        "train on coloured digits with a planted shortcut, offline, and show what was found",
        "lightning_failures.cli.demo:run_demo",
    ),
    "fit": Command("train with a LightningCLI config, e.g. --config configs/digits.yaml"),
    "validate": Command("grade and analyse the validation split"),
    "test": Command("grade and analyse the test split"),
    "analyse": Command("analyse a checkpoint on any split: --split train|validation|test"),
    "verdict": Command("test whether the interventions of a config help: fork a checkpoint"),
    "retrain-head": Command("refit the last layer of a checkpoint, flagged and unflagged examples of equal mass"),
    "embed": Command("embed a pool of any size, and find its hardest examples"),
    "pin": Command("keep a slice of a run as a regression test", "lightning_failures.cli.pins:pin"),
    "check-pins": Command(
        "check pinned slices on a model; the exit status is 1 if one reopens", positional="pins", several=True
    ),
    "transfer": Command("judge what a run found on the failures of another network", positional="run"),
    "doctor": Command("check a config before training: data, encoders, loggers, time, memory"),
    "report": Command(
        "show the last report of a run, and write it as one HTML file", "lightning_failures.cli.report:report"
    ),
    "reproduce": Command(
        "train on any folder of images, or repeat an experiment of a paper on your copy of its data",
        "lightning_failures.cli.reproduce:reproduce",
    ),
    "compare-methods": Command(
        "compare what failure directions and other methods (Domino, clusters, confidence) rank first",
        "lightning_failures.cli.compare_methods:compare_methods",
    ),
    "export": Command(
        "write flagged examples, labels to check, slices and pins for FiftyOne, Label Studio, cleanlab, CSV, JSON",
        "lightning_failures.cli.export:export",
    ),
    "study": Command(
        "make a study with people from the findings of a run, as one HTML file, and score its answers",
        "lightning_failures.cli.study:study",
    ),
    "diff": Command(
        "compare two runs: failures and failure modes that are fixed, new, persistent",
        "lightning_failures.cli.report:diff",
    ),
}
