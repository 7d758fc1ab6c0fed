"""Command ``compare-methods``: what failure directions and other methods rank first in a run."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict

from lightning_failures.errors import ConfigurationError
from lightning_failures.report.method_comparison import compare_methods as compare
from lightning_failures.report.method_comparison import comparison_text, read_attributes
from lightning_failures.report.run_folder import open_run


def compare_methods(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures compare-methods``."""
    parser = ArgumentParser(
        prog="lightning-failures compare-methods",
        description="Compare what failure directions, Domino, clusters and confidence rank first in a run. The run must"
        " have been made with FailureModes(advanced=AdvancedOptions(compare_methods=True)).",
    )
    parser.add_argument("run", help="folder of the run")
    parser.add_argument("--top", type=int, default=10, help="number of examples of each class (default: %(default)s)")
    parser.add_argument(
        "--attributes",
        metavar="FILE",
        help="CSV file with a column 'id' and columns of known attributes: shares of their values among the hardest",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if not 1 <= options.top <= 50:
        raise ConfigurationError(
            f"--top must be 1 ... 50, the number of examples that a ranking keeps; got {options.top}."
        )
    run = open_run(options.run)
    if run.table is None:
        raise ConfigurationError(f"{options.run} holds no table of examples, examples.safetensors.")
    attributes = None if options.attributes is None else read_attributes(options.attributes)
    found = compare(run.report, run.table, attributes, top=options.top)
    print(json.dumps(asdict(found), indent=2) if options.json else comparison_text(found))
