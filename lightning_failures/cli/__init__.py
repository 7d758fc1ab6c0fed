"""The command ``lightning-failures``.

There are two kinds of commands, and each new one takes a line in ``commands.COMMANDS``, whichever its kind:

* a command without model and data is a function of the arguments, in a file of its own (as ``report`` and ``diff``);
* a command with model and data is a method of ``lightning_commands.FailureTrainer`` (as ``analyse`` and ``doctor``):
  LightningCLI makes its options from the signature and docstring, and builds model, data and Trainer from a config.

Wrong input ends in one line on standard error: raise a :class:`~lightning_failures.errors.FailureModesError`.

Files, each importing only from those above it::

    commands            The table of all commands. It imports nothing, so that --help answers at once
    options             The options of commands without model and data, and what is wrong with them
    signatures          Signatures and docstrings of methods, read from source files without importing them
    model_options       The help of commands with model and data, and what is wrong with a command line or a config
    heartbeat           Signs of life of a command that has printed nothing for ten seconds
    demo                A training with a planted shortcut that needs no network: coloured digits and packaged encoders
    report              Commands report and diff, which read the files of runs
    pins                Command pin, which keeps a slice of a run as a regression test
    export              Command export, which writes the findings of a run for other tools
    study               Command study, which makes studies with people and scores them
    reproduce           Command reproduce, which repeats an experiment of a paper on the user's data
    compare_methods     Command compare-methods, which compares what several methods rank first
    lightning_commands  Commands with model and data: LightningCLI and its Trainer with additional subcommands
    main                The entry point: find the command, run it, and turn errors into exit statuses
"""

from lightning_failures.cli.main import main

__all__ = ["main"]
