"""Command ``reproduce``: an experiment of a paper on the user's own copy of its data set."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from lightning_failures.cli.options import reproduce_options
from lightning_failures.encoders import load_encoder
from lightning_failures.recipes import RECIPES
from lightning_failures.recipes.measure import measure
from lightning_failures.recipes.page import result_text, write_result


def reproduce(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures reproduce``."""
    options = reproduce_options(arguments, _recipe_texts())
    recipe = RECIPES[options.name]
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


def _recipe_texts() -> str:
    """Return what each recipe is and needs, for the help."""
    return "\n".join(
        f"  {one.name:<10}{one.summary}\n{textwrap.indent(textwrap.fill('needs ' + one.data, 88), ' ' * 12)}"
        for one in RECIPES.values()
    )
