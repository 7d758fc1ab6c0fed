"""Command ``reproduce``: an experiment of a paper on the user's own copy of its data set."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_failures.cli.options import reproduce_options
from lightning_failures.encoders import load_encoder
from lightning_failures.recipes import RECIPES
from lightning_failures.recipes.base import Examination, Materials, Measured, Recipe
from lightning_failures.recipes.measure import measure
from lightning_failures.recipes.page import result_text, write_result


def reproduce(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures reproduce``."""
    options = reproduce_options(arguments, _recipe_texts())
    recipe = RECIPES[options.name]
    folder = options.output / recipe.name
    run = _training(recipe, options, folder) if recipe.examine is None else _examination(recipe, options, folder)
    if options.quick:
        print("--quick: a tenth of the data; the figures are not those of the paper's setting.")
    measured = []
    for seed in options.seeds:
        print(f"{recipe.name}, seed {seed}", flush=True)
        measured.append(run(seed))
        page = write_result(recipe, measured, folder)  # after every seed: an interrupted run leaves its page
    print(f"\n{result_text(recipe, measured)}\n\nResult: {page}\nReport: {folder / measured[-1].report}")


def _training(recipe: Recipe, options: Namespace, folder: Path) -> Callable[[int], Measured]:
    """Return the function that trains and measures one seed; all data are read before."""
    parts = recipe.chosen_parts(options.parts)
    settings = {seed: recipe.prepare(options.data, seed, options.quick, options.variant) for seed in options.seeds}
    encoder = load_encoder(options.encoder)
    materials = Materials(options.inception, options.vit, options.generator, options.decoder)
    return lambda seed: measure(
        settings[seed], seed=seed, encoder=encoder, output=folder, epochs=options.epochs, workers=options.workers,
        parts=parts, materials=materials, quick=options.quick,
    )  # fmt: skip


def _examination(recipe: Recipe, options: Namespace, folder: Path) -> Callable[[int], Measured]:
    """Return the function that measures trained networks."""
    examine = recipe.examine
    assert examine is not None
    recipe.chosen_variant(options.variant), recipe.chosen_parts(options.parts)  # an error if they are named
    paths = {"weights": options.weights, "robust": options.robust_encoder}
    return lambda seed: examine(
        Examination(options.data, seed, options.quick, **paths, output=folder, workers=options.workers)
    )


def _recipe_texts() -> str:
    """Return what each recipe is and needs, for the help."""

    def more(name: str, text: str) -> str:
        return textwrap.indent(textwrap.fill(f"{name} {text}", 88), " " * 18)

    lines = []
    for one in RECIPES.values():
        lines += [f"  {one.name:<16}{one.summary}", more("needs", one.data)]
        if one.variants:
            lines.append(more("variants", ", ".join(one.variants)))
        if one.parts:
            lines.append(more("parts", ", ".join(part.name for part in one.parts)))
    return "\n".join(lines)
