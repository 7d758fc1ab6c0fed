"""Command ``compare-methods``: what failure directions and other methods rank first in a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from lightning_failures.cli.options import compare_methods_options
from lightning_failures.errors import ConfigurationError
from lightning_failures.report.method_comparison import compare_methods as compare
from lightning_failures.report.method_comparison import comparison_text, read_attributes
from lightning_failures.report.run_folder import earlier_tables, open_run


def compare_methods(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures compare-methods``."""
    options = compare_methods_options(arguments)
    run = open_run(options.run)
    if run.table is None:
        raise ConfigurationError(f"{options.run} holds no table of examples, examples.safetensors.")
    attributes = None if options.attributes is None else read_attributes(options.attributes)
    found = compare(run.report, run.table, attributes, top=options.top, earlier=earlier_tables(run))
    print(json.dumps(asdict(found), indent=2) if options.json else comparison_text(found))
