"""Command ``pin``: keep a slice of a run as a regression test, from the files of the run alone."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from lightning_failures.core.text import printable
from lightning_failures.errors import ConfigurationError
from lightning_failures.regression.pin import PIN_SUFFIX
from lightning_failures.report.pins import pin_slice
from lightning_failures.report.run_folder import open_run
from lightning_failures.writers.files import file_name


def pin(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures pin``."""
    options = _options(arguments)
    pinned = pin_slice(open_run(options.run), options.class_name, options.mode, accept=options.accept)
    path: Path = options.output
    if path.suffix != PIN_SUFFIX:
        path = path / f"{file_name(pinned.name)}{PIN_SUFFIX}"
    replaces = path.exists()
    try:
        pinned.save(path)
    except OSError as error:
        raise ConfigurationError(f"Could not write {path} ({error}). Give another place: --output FOLDER.") from error
    print(f"{printable(pinned.words)}\n\nPin{' (replaced)' if replaces else ''}: {printable(str(path))}")


def _options(arguments: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        "lightning-failures pin",
        description="Pin a slice of a run, so that a pattern that was fixed is noticed if it comes back: its images,\n"
        "its direction or rule and its error rate, in one small file. Only the files of the run are read.\n"
        "Check the pins of a folder on the next model with: lightning-failures check-pins pins --config ...",
        epilog="examples:\n  lightning-failures pin lightning_logs/version_3 --class owl\n"
        '  lightning-failures pin lightning_logs/version_3 --class owl --mode "owl 1"\n'
        '  lightning-failures pin lightning_logs/version_3 --class owl --mode "leaf 2" --output tests/pins',
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="its log folder, its failures/ folder, or the folder of the demo"
    )
    parser.add_argument("--class", dest="class_name", required=True, metavar="NAME", help="class of the slice")
    parser.add_argument(
        "--mode",
        metavar="NAME",
        help='failure mode of the diary, such as "owl 1", also one that is cured; or "leaf 2", the second leaf of the'
        " failure tree of the class. Default: the images that the direction of the class flags",
    )
    parser.add_argument(
        "--accept",
        action="store_true",
        help="keep the slice at its present error rate, although it fails more often than the rest of its class",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("pins"),
        metavar="FOLDER",
        help=f"folder of the pins, or a file whose name ends with {PIN_SUFFIX}; default: pins",
    )
    return parser.parse_args(list(arguments))
