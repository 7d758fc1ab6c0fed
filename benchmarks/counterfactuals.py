"""Do counterfactual checks tell the truth? On coloured digits, where an image can be changed in its tint alone.

Each seed trains the demo's classifier, analyses its validation set, and takes every class with a pattern whose hardest
caption names a tint that the class shows:

* ``measured``: error rate of the validation images with that tint minus that of the others, as observed.
* ``rerendered``: the truth. The same digits are drawn with that tint and with the other tints of the class, and in
  nothing else different; error rate with the tint minus without. ``on_test_digits``: the same on other digits.

The seeds of ``--checked`` are analysed by the callback, with its checks of the classes with most to gain:

* ``rendered``: the check of the caption by the packaged generator; ``without_shortcut``: the same images shown to a
  classifier that was trained on tints that say nothing, whose answers the caption must not change.
* ``features``: the check by pasting, of the features of the robust encoder in the rules.

    python benchmarks/counterfactuals.py --seeds 60 61 62 63 64 --checked 60
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from claims.common import World, all_captions
from digits import progress
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_failures import FailureModes
from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.counterfactuals import rendered_gap
from lightning_failures.bundled.digits import TINTS, ColouredDigits
from lightning_failures.bundled.digits.render import render, source_digits
from lightning_failures.callback import AdvancedOptions
from lightning_failures.data.records import CounterfactualReport
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.generators.digits import DigitsGenerator
from lightning_failures.trainer.pictures import counterfactuals, feature_views

DRAWS = 2
"""Number of times that each digit is drawn again, each with another scale, rotation and shift."""

RENDERED_SEEDS = 16
"""Number of seeds of the generator for each caption; half of the default, to save time on a CPU."""

CHECKED_CLASSES = 3
"""Number of classes, and of groups with a tree, that the callback checks."""


class Remembering(DigitsGenerator):
    """The packaged generator; it keeps its images by caption, in the order of the seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.images: dict[str, list[Tensor]] = {}

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Generate images and keep them."""
        found = super().generate(prompts, seeds)
        for prompt, image in zip(prompts, found, strict=True):
            self.images.setdefault(prompt, []).append(image)
        return found


def analysed(world: World) -> FailureReport:
    """Analyse the validation set of the plain model of a world, without a Trainer and without checks."""
    split = world.split("validation")
    return analyse(split.grades, split.embeddings, captions=lambda k: all_captions()[k], seed=world.seed).report


def checked(world: World, generator: Remembering) -> FailureReport:
    """Validate the plain model of a world with the callback, and with its checks."""
    feature_views.DEFAULT_ATTACK_SECONDS = 1.0  # attacks are no part of this
    counterfactuals.SEEDS = RENDERED_SEEDS
    counterfactuals.RENDER_SECONDS = 3600.0  # the machine may be shared
    counterfactuals.PASTE_SECONDS = 3600.0
    options = AdvancedOptions(worst_k=CHECKED_CLASSES, counterfactuals=generator)
    loader = DataLoader(world.data("validation"), batch_size=256)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        modes = FailureModes(
            encoder="embedded:digits",
            robust_encoder="embedded:digits",
            captions="digits",
            on_error="raise",
            advanced=options,
        )
        trainer = L.Trainer(
            accelerator="cpu",
            callbacks=[modes],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.validate(world.base().model, loader, verbose=False)
    assert modes.last_report is not None
    return modes.last_report.report


def named_tint(entry: ClassReport) -> str | None:
    """Return the tint that the hardest caption of a class names."""
    words = entry.hardest_captions[0].split() if entry.pattern and entry.hardest_captions else []
    return next((tint for tint in TINTS if tint in words), None)


def gap_measured(world: World, label: int, tint: str) -> float:
    """Return the error rate of the validation images of a class with a tint, minus that of the others."""
    grades, data = world.split("validation").grades, world.data("validation")
    of_class = grades.labels == label
    bears = torch.tensor([one == tint for one in data.tint])
    failed = grades.failed.float()
    return float(failed[of_class & bears].mean() - failed[of_class & ~bears].mean())


def gap_rerendered(world: World, data: ColouredDigits, label: int, tint: str) -> float:
    """Return the error rate of the digits of a class drawn with a tint, minus that with the other tints of the class.

    The pairs differ in the tint alone: digit, background, stroke, posture, scale, rotation and shift are the same.
    """
    rows = torch.nonzero(data.labels == label).flatten()
    digits = source_digits()[0][data.groups[rows]]
    looks = replace(data.attributes, **{name: values[rows] for name, values in vars(data.attributes).items()})
    number = list(TINTS).index(tint)
    others = looks.tint[looks.tint != number]
    gaps = []
    for draw in range(DRAWS):
        chosen = world.rng(11, label, draw).integers(len(others), size=len(rows))
        without = torch.where(looks.tint == number, others[torch.from_numpy(chosen)], looks.tint)
        tints = torch.full_like(without, number), without
        images = [render(digits, replace(looks, tint=some), world.rng(12, label, draw)) for some in tints]
        wrong = [world.base().logits(some).argmax(1) != label for some in images]
        gaps.append(float(wrong[0].float().mean() - wrong[1].float().mean()))
    return float(np.mean(gaps))


def without_shortcut(world: World, entry: ClassReport, label: int, generator: Remembering) -> dict[str, Any]:
    """Return the check of a caption, on the same images, of a classifier that had no shortcut to learn."""
    model = world.base(shortcut=0.5)
    assert entry.reference_caption is not None
    captions = entry.hardest_captions[0], entry.reference_caption, *entry.easiest_captions[:1]
    right = [model.logits(torch.stack(generator.images[one])).argmax(1) == label for one in captions]
    return shown(rendered_gap(*right))


def shown(found: CounterfactualReport | None) -> dict[str, Any] | None:
    """Return a check as plain values."""
    return None if found is None else found.to_dict()


def run(seed: int, *, checks: bool) -> dict[str, Any]:
    """Return the figures of one seed, with the checks of the callback or without."""
    begun = time.perf_counter()
    world, generator = World(seed), Remembering()
    report = checked(world, generator) if checks else analysed(world)
    data = world.data("validation")
    classes: list[dict[str, Any]] = []
    for label, entry in enumerate(report.classes):
        tint = named_tint(entry)
        shows = {one for one, k in zip(data.tint, data.labels.tolist(), strict=True) if k == label}
        if tint is None or tint not in shows or len(shows) < 2:
            continue
        rendered = entry.counterfactual is not None and entry.counterfactual.changed is not None
        classes.append(
            {
                "class": entry.name,
                "caption": entry.hardest_captions[0],
                "tint": tint,
                "unusual": data.truth[label] is not None and data.truth[label]["unusual_tint"] == tint,
                "measured": gap_measured(world, label, tint),
                "rerendered": gap_rerendered(world, data, label, tint),
                "on_test_digits": gap_rerendered(world, world.data("test"), label, tint),
                "rendered": shown(entry.counterfactual),
                "without_shortcut": without_shortcut(world, entry, label, generator) if rendered else None,
            }
        )
    features = [
        {"feature": one.feature, "groups": list(one.groups), "check": shown(one.counterfactual)}
        for one in report.features
    ]
    means = {
        f"mean_{name}": float(np.mean([one[name] for one in classes])) if classes else None
        for name in ("measured", "rerendered", "on_test_digits")
    }
    distance = abs(means["mean_rerendered"] - means["mean_measured"]) if classes else None
    return {
        "seed": seed,
        "patterns": sum(entry.pattern for entry in report.classes),
        "classes": classes,
        "features": features,
        **means,
        "distance": distance,
        "seconds": round(time.perf_counter() - begun),
    }


def verdicts(checks: Sequence[dict[str, Any] | None]) -> dict[str, int]:
    """Return how often each verdict came."""
    names = [check["verdict"] for check in checks if check is not None]
    return {name: names.count(name) for name in ("confirmed", "not confirmed", "not measured")}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures over all seeds."""
    classes = [one for run in runs for one in run["classes"]]
    return {
        "seeds": len(runs),
        "classes": len(classes),
        "largest_distance_of_a_seed": max((run["distance"] for run in runs if run["classes"]), default=None),
        "within_3_points": sum(run["distance"] is not None and run["distance"] <= 0.03 for run in runs),
        "mean_distance_of_a_class": float(np.mean([abs(one["rerendered"] - one["measured"]) for one in classes]))
        if classes
        else None,
        "rendered": verdicts([one["rendered"] for one in classes]),
        "without_shortcut": verdicts([one["without_shortcut"] for one in classes]),
        "pasted": verdicts([one["check"] for run in runs for one in run["features"]]),
    }


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[60, 61, 62, 63, 64])
    parser.add_argument("--checked", type=int, nargs="*", default=[60], help="seeds with the checks of the callback")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/counterfactuals.json"))
    return parser.parse_args()


def main() -> None:
    """Run all seeds, and write the figures after each."""
    options = read_arguments()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    for seed in progress(options.seeds, "seed"):
        runs.append(run(seed, checks=seed in options.checked))
        found = {"summary": summary(runs), "runs": runs}
        options.output.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found["summary"]), flush=True)


if __name__ == "__main__":
    main()
