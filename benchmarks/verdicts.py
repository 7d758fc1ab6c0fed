"""Are verdicts right? Forks of checkpoints on coloured digits, with interventions that help and others that do not.

For each seed a small training continues from its second epoch in pairs of forks, with

* factor 1: ``Upweight(factor=1)``, which changes nothing (if the first fork equals the one without it bit for bit, the
  other forks are assumed to be equal too);
* placebo: random examples with four times the weight, as many of each class as ``Upweight`` would flag;
* upweight: ``Upweight(factor=4)``;
* oracle: the examples with the unusual tint at four times the weight.

Verdicts from fewer pairs, and from a bootstrap over the examples alone, are computed from the same forks.

At the end of the same training, ``RetrainHead`` fits new heads that are not used, with its own flags and with as many
random ones; it compares both with heads that know no flags and with randomly flagged ones, because refitting alone
gains.

    python benchmarks/verdicts.py --seeds 0 1 2
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from digits import TINTS_OF, digits_encoder, progress, read_options

from lightning_failures import FailureModes
from lightning_failures.bundled.digits import ColouredDigits, ColouredDigitsDataModule, DigitClassifier
from lightning_failures.callback import AdvancedOptions
from lightning_failures.data.grades import Grades
from lightning_failures.interventions import Decision, Intervention, JudgedExamples, RetrainHead, Round, Upweight
from lightning_failures.interventions.verdicts import paired_verdict
from lightning_failures.steering.forks.run import Forks, Run, compare_forks

PAIRS = 3
EPOCHS = 2  # of the training before
SIZES = {"train_size": 2500, "val_size": 2000, "test_size": 10}
FACTOR = 4.0


class Placebo(Upweight):
    """The weights of ``Upweight``, permuted at random within each class."""

    def decide(self, examples: JudgedExamples, round: Round | None = None) -> Decision:
        """Return the same weights for random examples."""
        decision = super().decide(examples, round)
        rng = np.random.default_rng(len(examples.labels))
        weights = decision.weights.copy()
        for k in np.unique(examples.labels):
            rows = np.flatnonzero(examples.labels == k)
            weights[rows] = rng.permutation(weights[rows])
        return Decision(weights, decision.classes)


class Oracle(Upweight):
    """Upweights the training examples with the unusual tint, given by ``rows``."""

    rows: list[int]

    def decide(self, examples: JudgedExamples, round: Round | None = None) -> Decision:
        """Return weights from the true tints, which no analysis has."""
        weights = np.ones(len(examples.labels))
        weights[self.rows] = self.factor
        return Decision(weights, ())


class RandomHead(RetrainHead):
    """Refits the last layer with random flags, as many of each class as ``RetrainHead`` has."""

    def decide(self, examples: JudgedExamples, round: Round) -> Decision:
        """Fit to the examples with the decision values of others of their class."""
        values, rng = examples.values.copy(), np.random.default_rng(round.seed)
        for k in np.unique(examples.labels):
            rows = np.flatnonzero(examples.labels == k)
            values[rows] = rng.permutation(values[rows])
        return super().decide(replace(examples, values=values), round)


HEADS = {"random head": RandomHead, "new head": RetrainHead}

encoder = cache(digits_encoder)


@cache
def digits(seed: int) -> ColouredDigitsDataModule:
    """Return the data of one seed, rendered once."""
    data = ColouredDigitsDataModule(seed=seed, **SIZES)
    data.setup("fit")
    return data


def unusual(data: ColouredDigits) -> list[int]:
    """Return the rows with the unusual tint of their digit."""
    tints = [None if truth is None else truth["unusual_tint"] for truth in data.truth]
    worn = zip(data.labels.tolist(), data.attributes.tint.tolist(), strict=True)
    return [row for row, (label, tint) in enumerate(worn) if TINTS_OF[tint] == tints[label]]


def run(seed: int, place: Path, *interventions: Intervention, epochs: int = 2 * EPOCHS) -> Run:
    """Return the training of one seed, ready to start; without interventions also without the callback."""
    L.seed_everything(seed, verbose=False)
    modes = FailureModes(
        encoder=encoder(),
        captions=None,
        interventions=interventions,
        pictures=False,
        advanced=AdvancedOptions(cache_folder=place / "cache", seed=seed),
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_val_batches=None if interventions else 0,
        callbacks=[modes] if interventions else [],
        logger=False,
        default_root_dir=place,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data = ColouredDigitsDataModule(seed=seed, **SIZES)
    data.sets = digits(seed).sets
    return Run(trainer, DigitClassifier(), {"datamodule": data})


def forks_of(seed: int, place: Path) -> dict[str, Any]:
    """Return all verdicts of one seed and the accuracies of all forks."""
    first = run(seed, place, epochs=EPOCHS)
    first.trainer.fit(first.module, **first.data)
    checkpoint = str(place / "start.ckpt")
    first.trainer.save_checkpoint(checkpoint)
    when = {"start_epoch": EPOCHS + 1, "every_n_epochs": 99}
    arms: dict[str, Any] = {
        "factor 1": Upweight(1.0, triage=False, **when),
        "placebo": Placebo(FACTOR, triage=False, **when),
        "upweight": Upweight(FACTOR, triage=False, **when),
        "oracle": Oracle(FACTOR, triage=False, **when),
    }
    arms["oracle"].rows = unusual(digits(seed).sets["train"])
    control: list[Grades] = []
    found: dict[str, Any] = {"seed": seed, "arms": {}}
    for name, intervention in arms.items():
        forks = Forks(lambda one=intervention: run(seed, place, one), place / name, seed)
        forks.place.mkdir()
        start = forks.begin(checkpoint, place)
        assert start is not None
        until = start.epoch + 1
        # the forks without are the same training whatever the intervention is, so they are trained once
        control = control or [forks.train(start, until, pair, treated=False) for pair in range(PAIRS)]
        treated = [forks.train(start, until, 0, treated=True)]
        if name == "factor 1":
            found["identical"] = torch.equal(treated[0].confidence, control[0].confidence)
        if found["identical"] and name == "factor 1":
            treated = control
        else:
            treated += [forks.train(start, until, pair, treated=True) for pair in range(1, PAIRS)]
        found["arms"][name] = figures(treated, control, torch.from_numpy(start.flagged.ids))
        verdict = found["arms"][name]["pairs"][str(PAIRS)]
        print(f"  seed {seed} {name:<11} {verdict['sentence']}", flush=True)
    return found


def heads_of(seed: int, place: Path) -> dict[str, Any]:
    """Return the verdicts on new heads at the end of the same training, by name of the head."""
    training = run(seed, place, *(kind(triage=False, dry_run=True) for kind in HEADS.values()), epochs=EPOCHS)
    training.trainer.fit(training.module, **training.data)
    (modes,) = (one for one in training.trainer.callbacks if isinstance(one, FailureModes))
    verdicts = dict(zip(HEADS, (entry["verdict"] for entry in modes.last_report.interventions), strict=True))
    for name, verdict in verdicts.items():
        print(f"  seed {seed} {name:<11} {verdict['sentence']}", flush=True)
    return verdicts


def figures(treated: list[Grades], control: list[Grades], flagged: torch.Tensor) -> dict[str, Any]:
    """Return verdicts from all pairs and from fewer, naive verdicts from the first pair, and raw accuracies."""
    mine = torch.isin(control[0].ids, flagged)
    assert control[0].groups is not None
    groups = control[0].groups[mine]
    one, other = treated[0].correct[mine], control[0].correct[mine]
    # with two pairs that both gave exactly this, the interval covers the examples alone
    naive = paired_verdict(one.expand(2, -1), other.expand(2, -1), groups=groups)
    return {
        "pairs": {str(n): compare_forks(treated[:n], control[:n], flagged, 1).to_dict() for n in (2, PAIRS)},
        "examples alone": naive.outcome,
        "flagged": {
            arm: [float(grades.correct[mine].float().mean()) for grades in forks]
            for arm, forks in (("with", treated), ("without", control))
        },
        "all": {
            arm: [float(grades.correct.float().mean()) for grades in forks]
            for arm, forks in (("with", treated), ("without", control))
        },
    }


def main() -> None:
    """Run all seeds that are not in the output yet, print the counts, and write the raw figures after each seed."""
    arguments = read_options(__doc__, seeds=range(20), name="verdicts")
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    runs: list[dict[str, Any]] = []
    if arguments.output.exists():
        runs = json.loads(arguments.output.read_text())["runs"]
    for seed in progress([seed for seed in arguments.seeds if seed not in {run["seed"] for run in runs}], "seed"):
        with tempfile.TemporaryDirectory() as place:
            runs.append(forks_of(seed, Path(place)) | {"heads": heads_of(seed, Path(place))})
        runs.sort(key=lambda run: run["seed"])
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps({"summary": summarise(runs), "runs": runs}, indent=1) + "\n")
    summary = summarise(runs)
    print(f"\nOutcomes over {len(runs)} seeds: {PAIRS} pairs; 2 pairs; one pair, bootstrap of the examples alone")
    for name, counts in summary["outcomes"].items():
        columns = ["; ".join(f"{k} {v}" for k, v in count.items()) for count in counts.values()]
        print(f"  {name:<11} {columns[0]:<34} | {columns[1]:<34} | {columns[2]}")
    for name, counts in summary["heads"].items():
        print(f"  {name:<11} {'; '.join(f'{k} {v}' for k, v in counts.items())}")
    print(f"Factor 1: forks bit-identical in {summary['identical']} of {len(runs)} seeds")
    print(f"Difference on the flagged slice, mean over seeds: {summary['difference']}")
    print(f"Standard deviation between forks: flagged {summary['noise']:.3f}, all {summary['noise_all']:.3f}")


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return counts and means over seeds."""
    names = list(runs[0]["arms"])

    def spread(of: str) -> float:
        arms = [r["arms"][name][of][side] for r in runs for name in names for side in ("with", "without")]
        return float(np.sqrt(np.mean([np.var(accuracies, ddof=1) for accuracies in arms])))

    return {
        "outcomes": {
            name: {
                f"{PAIRS} pairs": Counter(r["arms"][name]["pairs"][str(PAIRS)]["outcome"] for r in runs),
                "2 pairs": Counter(r["arms"][name]["pairs"]["2"]["outcome"] for r in runs),
                "examples alone": Counter(r["arms"][name]["examples alone"] for r in runs),
            }
            for name in names
        },
        "heads": {name: Counter(r["heads"][name]["outcome"] for r in runs) for name in HEADS},
        "difference": {
            name: round(float(np.mean([r["arms"][name]["pairs"][str(PAIRS)]["difference"] for r in runs])), 4)
            for name in names
        }
        | {name: round(float(np.mean([r["heads"][name]["difference"] for r in runs])), 4) for name in HEADS},
        "identical": sum(r["identical"] for r in runs),
        "noise": spread("flagged"),
        "noise_all": spread("all"),
    }


if __name__ == "__main__":
    main()
