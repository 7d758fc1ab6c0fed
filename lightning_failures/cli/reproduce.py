"""Command ``reproduce``: an experiment of a paper on the user's own copy of its data set."""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from lightning_failures.encoders import load_encoder
from lightning_failures.encoders.cached import DEFAULT_ENCODER
from lightning_failures.errors import ConfigurationError, did_you_mean
from lightning_failures.recipes import RECIPES
from lightning_failures.recipes.measure import measure
from lightning_failures.recipes.page import result_text, write_result


def reproduce(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures reproduce``."""
    options = _parser().parse_args(arguments)
    recipe = RECIPES.get(options.name)
    if recipe is None:
        raise ConfigurationError(
            f"There is no recipe {options.name!r}.{did_you_mean(options.name, RECIPES)} Recipes: {', '.join(RECIPES)}."
        )
    if not options.data.is_dir():
        raise ConfigurationError(f"--data {options.data} is no folder. The recipe needs {recipe.data}.")
    if options.epochs is not None and options.epochs < 1:
        raise ConfigurationError(f"--epochs must be at least 1, got {options.epochs}.")
    if len(set(options.seeds)) < len(options.seeds):
        raise ConfigurationError(f"--seeds must differ, got {options.seeds}.")
    settings = {seed: recipe.setting(options.data, seed, options.quick) for seed in options.seeds}
    if options.quick:
        print("--quick: a tenth of the data; the figures are not those of the paper's setting.")
    encoder = load_encoder(options.encoder)
    folder = options.output / recipe.name
    measured = []
    for seed, setting in settings.items():
        print(f"{recipe.name}, seed {seed}: {len(setting.class_names)} classes", flush=True)
        one = measure(
            setting, seed=seed, encoder=encoder, output=folder, epochs=options.epochs, workers=options.workers
        )
        measured.append(one)
        page = write_result(recipe, measured, folder)  # after every seed: an interrupted run leaves its page
    print(f"\n{result_text(recipe, measured)}\n\nResult: {page}\nReport: {folder / measured[-1].report}")


def _parser() -> ArgumentParser:
    recipes = "\n".join(
        f"  {one.name:<10}{one.summary}\n{textwrap.indent(textwrap.fill('needs ' + one.data, 88), ' ' * 12)}"
        for one in RECIPES.values()
    )
    parser = ArgumentParser(
        prog="lightning-failures reproduce",
        formatter_class=RawDescriptionHelpFormatter,
        description="Train a paper's network on your own copy of its data set, and write the published figures beside\n"
        f"what was found. Nothing is downloaded but the encoder.\n\nrecipes:\n{recipes}",
    )
    parser.add_argument("name", help="name of a recipe")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training each (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data")
    parser.add_argument("--epochs", type=int, help="another number of epochs than the paper's")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help="as in FailureModes (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images (default: 0)")
    parser.add_argument(
        "--output", type=Path, default=Path("reproduced"), help="folder of results (default: %(default)s)"
    )
    return parser
