"""The entry point: find the command, run it, and turn errors into exit statuses.

Modules of commands are imported when their command is run, so that ``--help`` and a mistyped command answer at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from importlib import import_module

from lightning_failures.cli.commands import COMMANDS
from lightning_failures.core.home import provide_home
from lightning_failures.core.text import printable
from lightning_failures.errors import FailureModesError, did_you_mean


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command and its options. None: those of the process.

    Returns:
        The exit status: 0, 1 after an error of this package, 2 if the command is unknown.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # the output may be ASCII, the names and signs in reports are not
        sys.stdout.reconfigure(errors="backslashreplace")
    provide_home()
    name, *options = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name not in COMMANDS:
        print(printable(f"lightning-failures: no command {name!r}.{did_you_mean(name, COMMANDS)}"), file=sys.stderr)
        print(f"\n{_usage()}", file=sys.stderr)
        return 2
    try:
        return _run(name, options)
    except FailureModesError as error:
        print(printable(f"lightning-failures: {error}"), file=sys.stderr)
        return 1


def _run(name: str, options: Sequence[str]) -> int:
    if place := COMMANDS[name].function:
        module, _, function = place.partition(":")
        status: int | None = getattr(import_module(module), function)(options)
        return status or 0
    from lightning_failures.cli.lightning_commands import run_with_model

    return run_with_model(name, options)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: lightning-failures COMMAND [options]", "", *lines, "", "Each command has its own --help."]
    )
