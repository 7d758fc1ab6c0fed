"""The entry point: find the command, run it, and turn errors into exit statuses.

Modules of commands are imported when their command is run, so that ``--help`` and a mistyped command answer at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from lightning_failures.cli.commands import COMMANDS
from lightning_failures.cli.heartbeat import heartbeat
from lightning_failures.core.home import provide_home
from lightning_failures.core.text import printable
from lightning_failures.errors import FailureModesError, did_you_mean


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command and its options. None: those of the process.

    Returns:
        The exit status: 0, 1 after an error of this package, 2 if the command is unknown.

    Raises:
        SystemExit: With status 2 after a wrong option, with status 0 after help.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # the output may be ASCII, the names and signs in reports are not
        sys.stdout.reconfigure(errors="backslashreplace")
    provide_home()
    name, *options = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name not in COMMANDS:
        close = did_you_mean(name, get_close_matches(name, list(COMMANDS), n=1))
        _complain(f"no command {name!r}; lightning-failures --help lists all.{close}")
        return 2
    try:
        with heartbeat(sys.stderr):
            return _run(name, options)
    except FailureModesError as error:
        _complain(str(error))
        if getattr(error, "exit_status", 1) == 2:  # a wrong command line ends as argparse ends it
            raise SystemExit(2) from error
        return 1


def _complain(message: str) -> None:
    """Print an error as one line."""
    print(printable(f"lightning-failures: {' '.join(message.split())}"), file=sys.stderr)


def _run(name: str, options: Sequence[str]) -> int:
    if place := COMMANDS[name].function:
        parsers = import_module("lightning_failures.cli.options").OPTIONS
        if name in parsers and not {"-h", "--help"} & set(options):
            parsers[name](options)  # what is wrong with them is known before torch is imported
        module, _, function = place.partition(":")
        status: int | None = getattr(import_module(module), function)(options)
        return status or 0
    return _run_with_model(name, list(options))


def _run_with_model(name: str, options: list[str]) -> int:
    from lightning_failures.cli.model_options import HELP_ALL, check, help_text

    if any(option in ("-h", "--help") for option in options):
        print(help_text(name))
        raise SystemExit(0)
    if HELP_ALL in options:
        options = ["--help"]
    else:
        check(name, options)
    if not {"", str(Path.cwd())} & set(sys.path):  # model and data of a config may be in files of this folder
        sys.path.append(str(Path.cwd()))
    from lightning_failures.cli.lightning_commands import run_with_model

    return run_with_model(name, options)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: lightning-failures COMMAND [options]", "", *lines, "", "Each command has its own --help."]
    )
