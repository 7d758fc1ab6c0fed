"""Does the failure diary keep the names of modes apart, and how reliable are its statuses?

    python benchmarks/diary.py            # --seeds 0 1 for fewer trainings

1. Pairs: the similarity (cosine of the directions, shared members) of the same mode in two analyses, and of two
   different modes of one class. The rule and its threshold in ``lightning_failures/directions/matching.py`` are chosen
   on these pairs. *training*: the demo's training, analysed at each of 10 epochs with a fixed validation set; a mode is
   the same if at least half of its members have the unusual tint of the class in both analyses, 1 to 3 epochs apart.
   *attribute*: real images and embeddings with new failures for each analysis, most of them where an attribute of the
   digit has one value (different: another value of it, or another attribute). *noise*: Gaussian classes with two
   planted subpopulations whose directions have cosine 0 or 0.3, with new failures for each analysis.
2. Names: over the same trainings, the share of detections with the name under which their mode was first detected.
3. Order: two modes of a class that change places as the more frequent one, with ``n_directions=2``; the share of
   detections that keep their names.
4. Steady: constant failure rates with new failures: how often a mode is reported as growing or shrinking, per analysis
   and at least once in 20 analyses. Drifting: a rate that goes from 0.3 to 0.6, or back, in ten analyses: how often
   this is reported at any analysis, and how often the opposite.
5. Time of one advance with 1,000 classes, 512 dimensions and 50,000 examples.

Writes a table to stdout and all figures to JSON.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from digits import digits_encoder, progress, read_options
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from numpy.typing import NDArray

from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.diary import Diary, advance
from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.bundled.digits import TINTS, ColouredDigits, ColouredDigitsDataModule, DigitClassifier
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.grading import grade_batch
from lightning_failures.data.report import ClassReport, FailureReport, ModeReport
from lightning_failures.directions import FailureDirections, fit_failure_directions, matching
from lightning_failures.directions.matching import ModeSimilarity, ModeSnapshot, mode_similarity
from lightning_failures.directions.result import without_effects

EPOCHS = 10
Floats = NDArray[np.floating[Any]]
Pairs = dict[str, list[ModeSimilarity]]


class Sighting(NamedTuple):
    """A mode as detected by one analysis."""

    direction: Floats
    look: ModeSnapshot


def alike(one: Sighting, other: Sighting) -> ModeSimilarity:
    """Compare two detections."""
    return mode_similarity(one.direction, one.look, other.direction, other.look)


class Analyses(L.Callback):
    """Analyses the validation set after each epoch, with embeddings that are computed once."""

    def __init__(self, data: ColouredDigits, embeddings: torch.Tensor) -> None:
        self.data, self.embeddings = data, embeddings
        self.images = torch.stack([data[i][0] for i in range(len(data))])
        self.reports: list[AnalysisResult] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Grade and analyse."""
        pl_module.eval()
        with torch.no_grad():
            logits = torch.cat([pl_module(batch) for batch in self.images.split(512)])
        pl_module.train()
        rows = grade_batch(logits, torch.as_tensor(self.data.labels))
        grades = Grades(
            ids=torch.arange(len(self.data)),
            labels=rows.labels,
            predictions=rows.predictions,
            confidence=rows.confidence,
            class_names=tuple(self.data.classes),
            groups=torch.as_tensor(self.data.groups),
        )
        self.reports.append(analyse(grades, self.embeddings))


def embed(data: ColouredDigits) -> torch.Tensor:
    """Return the embeddings of all images by the packaged CLIP."""
    encoder = digits_encoder()
    return torch.cat([encoder.encode_images(images.float() / 255) for images in data.images.split(256)])


def train(seed: int) -> Analyses:
    """Run the demo's training."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(seed, verbose=False)
    data = ColouredDigitsDataModule(seed=seed)
    data.setup("fit")
    analyses = Analyses(data.sets["validation"], embed(data.sets["validation"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        L.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            limit_val_batches=0,
            callbacks=[analyses],
        ).fit(DigitClassifier(), datamodule=data)
    return analyses


def unusual_share(data: ColouredDigits, k: int, look: ModeSnapshot) -> float:
    """Return the share of the members of a mode of class k with its unusual tint; NaN without a planted tint."""
    truth = data.truth[k]
    if truth is None or not look.size:
        return float("nan")
    tints = data.attributes.tint.numpy()[look.ids[look.members]]
    return float((tints == list(TINTS).index(truth["unusual_tint"])).mean())


def sightings(reports: list[AnalysisResult], k: int) -> list[Sighting | None]:
    """Return the modes that each report detects in class k."""
    found: list[Sighting | None] = []
    for report in reports:
        directions, table = report.directions, report.table
        assert directions is not None
        assert table is not None
        if not report.report.classes[k].pattern:
            found.append(None)
            continue
        weight = directions.weight[directions.row(k)].numpy()
        rows = (table.labels == k) & ~table.values.isnan()
        look = ModeSnapshot(table.ids[rows].numpy(), table.flagged[rows].numpy(), table.failed[rows].numpy())
        found.append(Sighting(weight / np.linalg.norm(weight), look))
    return found


def training_pairs(analyses: Analyses) -> Iterator[tuple[str, ModeSimilarity]]:
    """Return pairs of the planted mode of each class, some epochs apart."""
    for k in range(10):
        seen = [
            mode if mode is not None and unusual_share(analyses.data, k, mode.look) >= 0.5 else None
            for mode in sightings(analyses.reports, k)
        ]
        for lag in (1, 2, 3):
            for one, other in zip(seen, seen[lag:], strict=False):
                if one is not None and other is not None:
                    yield f"same: training, {lag} epoch{'s' * (lag > 1)} apart", alike(one, other)


def planted(
    x: Floats, inside: NDArray[np.bool_], rng: np.random.Generator, reference: Floats | None = None
) -> Sighting | None:
    """Return the mode that an analysis detects in newly drawn failures; None without a pattern."""
    high, low = rng.uniform(0.5, 0.95), rng.uniform(0.0, 0.15)
    failed = rng.random(len(x)) < np.where(inside, high, low)
    fitted = fit_failure_directions(x, np.zeros(len(x), dtype=int), ~failed, reference=reference, permutations=199)
    if not len(fitted.classes) or fitted.p_value[0] > 0.01:
        return None
    weight = fitted.weight[0].numpy()
    look = ModeSnapshot(np.arange(len(x)), fitted.out_of_fold.numpy() < 0, failed)
    return Sighting(weight / np.linalg.norm(weight), look)


def attribute_pairs(analyses: Analyses, rng: np.random.Generator) -> Iterator[tuple[str, ModeSimilarity]]:
    """Return pairs on real images of one digit, with failures where an attribute has one value."""
    x = analyses.embeddings.numpy()
    for k in range(10):
        rows = np.flatnonzero(np.asarray(analyses.data.labels) == k)
        found: list[tuple[str, int, Sighting]] = []
        for name, values in vars(analyses.data.attributes).items():
            column = np.asarray(values)[rows]
            for value, count in zip(*np.unique(column, return_counts=True), strict=True):
                if 0.05 < count / len(rows) < 0.7:
                    seen = (planted(x[rows], column == value, rng, reference=x) for _ in range(2))
                    found += [(name, int(value), mode) for mode in seen if mode is not None]
        for (name, value, one), (other_name, other_value, other) in itertools.combinations(found, 2):
            if (name, value) == (other_name, other_value):
                yield "same: attribute", alike(one, other)
            else:
                kind = "another value" if name == other_name else "another attribute"
                yield f"different: {kind}", alike(one, other)


def noise_pairs(rng: np.random.Generator, trials: int = 150, dim: int = 512) -> Iterator[tuple[str, ModeSimilarity]]:
    """Return pairs in Gaussian classes with two subpopulations."""
    for _ in range(trials):
        n, cosine = int(rng.choice([200, 400, 800])), float(rng.choice([0.0, 0.3]))
        first, second = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
        second = cosine * first + np.sqrt(1 - cosine**2) * second
        inside = rng.random((2, n)) < rng.uniform(0.1, 0.4, size=(2, 1))
        x = rng.normal(size=(n, dim)) + rng.uniform(3, 5) * inside.T @ np.stack([first, second])
        found = [(mode, seen) for mode in (0, 1) for _ in range(2) if (seen := planted(x, inside[mode], rng))]
        for (mode, one), (other_mode, other) in itertools.combinations(found, 2):
            kind = "same: noise" if mode == other_mode else f"different: noise, cosine {cosine:g}"
            yield kind, alike(one, other)


def rule_errors(pairs: Pairs, weight: float, threshold: float) -> dict[str, float]:
    """Return the share of pairs of each kind that a rule gets wrong."""

    def similarity(pair: ModeSimilarity) -> float:
        return pair.cosine if pair.shared is None else weight * pair.cosine + (1 - weight) * pair.shared

    return {
        kind: float(np.mean([(similarity(pair) >= threshold) != kind.startswith("same") for pair in rows]))
        for kind, rows in pairs.items()
    }


def best_rules(pairs: Pairs) -> list[dict[str, float]]:
    """Return for each weight of the cosine the threshold with the smallest largest error over kinds."""
    rules = []
    for weight in (0.0, 0.5, 0.667, 0.8, 0.9, 1.0):
        worst = {t: max(rule_errors(pairs, weight, t).values()) for t in np.linspace(0, 0.8, 81).round(2).tolist()}
        least = min(worst.values())
        middle = float(np.median([t for t, error in worst.items() if error == least]))
        rules.append({"cosine_weight": weight, "threshold": middle, "largest_error": least})
    return rules


def names_kept(analyses: Analyses) -> tuple[int, int, Counter[str]]:
    """Return how many detections of planted modes have the first name of their mode, their number, and all statuses."""
    diary, first_name = Diary(), dict[str, str]()
    kept = total = 0
    statuses: Counter[str] = Counter()
    for epoch, report in enumerate(analyses.reports):
        seen = {k: sightings([report], k)[0] for k in range(10)}
        diary, modes = advance(diary, _at(report, epoch))
        statuses.update(mode.status for mode in modes)
        name_of = {mode.class_name: mode.name for mode in modes if mode.status not in ("missing", "cured")}
        for k, sight in seen.items():
            name = analyses.data.classes[k]
            if sight is not None and unusual_share(analyses.data, k, sight.look) >= 0.5:
                total += 1
                kept += first_name.setdefault(name, name_of[name]) == name_of[name]
    return kept, total, statuses


def _at(result: AnalysisResult, epoch: int) -> AnalysisResult:
    return result.with_report(epoch=epoch)


def analysed(
    x: Floats, rates: NDArray[np.float64], rng: np.random.Generator, epoch: int, directions: int
) -> AnalysisResult:
    """Return the analysis of newly drawn failures of one class."""
    failed = torch.from_numpy(rng.random(len(x)) < rates)
    rows = torch.arange(len(x))
    grades = Grades(rows, torch.zeros_like(rows), failed.long(), torch.ones(len(x)), ("cat", "dog"))
    return _at(analyse(grades, torch.from_numpy(x), n_directions=directions, permutations=199), epoch)


def change_of_order(rng: np.random.Generator, trials: int = 12, dim: int = 64) -> dict[str, float]:
    """Follow two modes of which the first is more frequent at first and the second at last."""
    kept = total = both = looks = 0
    for _ in range(trials):
        n = 800
        first, second = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
        kind = rng.choice(3, size=n, p=[0.2, 0.2, 0.6])
        x = rng.normal(size=(n, dim)) + 5.0 * ((kind == 0)[:, None] * first + (kind == 1)[:, None] * second)
        diary, mode_of = Diary(), dict[str, int]()
        for epoch, high in enumerate(np.linspace(0.9, 0.4, 8)):
            rates = np.select([kind == 0, kind == 1], [high, 1.3 - high], 0.05)
            diary, _ = advance(diary, analysed(x, rates, rng, epoch, 2))
            seen = [mode for mode in diary.modes if mode.last == diary.analyses]
            looks, both = looks + 1, both + (len(seen) == 2)
            for mode in seen if len(seen) == 2 else []:
                truth = int(np.argmin([mode.direction @ first, mode.direction @ second]))  # against it: hard
                total += 1
                kept += mode_of.setdefault(mode.name, truth) == truth
    return {"analyses": looks, "with_both": both, "sightings": total, "kept": kept}


def followed(rng: np.random.Generator, rates: Floats, dim: int = 64) -> list[ModeReport]:
    """Return the diary's entries of one mode whose failure rate takes these values."""
    inside = rng.random(400) < 0.3
    x = rng.normal(size=(len(inside), dim)) + 4.0 * inside[:, None] * np.eye(dim)[0]
    diary, entries = Diary(), list[ModeReport]()
    for epoch, rate in enumerate(rates.tolist()):
        diary, modes = advance(diary, analysed(x, np.where(inside, rate, 0.05), rng, epoch, 1))
        entries += modes
    return entries


def steady(rng: np.random.Generator, trials: int = 50, looks: int = 20) -> dict[str, float]:
    """Measure statuses if only the choice of failing examples changes."""
    histories = [followed(rng, np.full(looks, 0.6)) for _ in range(trials)]
    changing = [
        [mode.status in ("growing", "shrinking") for mode in modes if mode.status != "new"] for modes in histories
    ]
    return {
        "modes": trials,
        "looks": looks,
        "told_as_changing": float(np.mean([value for row in changing for value in row])),
        "ever_told_as_changing": float(np.mean([any(row) for row in changing])),
        "names": float(np.mean([len({mode.name for mode in modes}) for modes in histories])),
    }


def drifting(rng: np.random.Generator, trials: int = 50) -> dict[str, float]:
    """Measure statuses if the failure rate of a mode of 120 examples rises from 0.3 to 0.6, or falls, over time."""
    found = {}
    for status, rates in (("growing", np.linspace(0.3, 0.6, 10)), ("shrinking", np.linspace(0.6, 0.3, 10))):
        statuses = [{mode.status for mode in followed(rng, rates)} for _ in range(trials)]
        other = "shrinking" if status == "growing" else "growing"
        found[status] = float(np.mean([status in row for row in statuses]))
        found[f"{status}_told_as_{other}"] = float(np.mean([other in row for row in statuses]))
    return found


def seconds_of_an_advance(classes: int = 1000, dim: int = 512, n: int = 50_000) -> float:
    """Return the median of five runs, each with matches, changes and tests for all classes."""
    rng = np.random.default_rng(0)
    labels, names = torch.arange(n) % classes, tuple(f"class {k}" for k in range(classes))
    base = rng.normal(size=(classes, dim)).astype(np.float32)
    nothing = torch.zeros(classes, dtype=torch.float64)
    diary, times = Diary(), list[float]()
    for epoch in range(8):
        failed, values = torch.from_numpy(rng.random(n) < 0.4), torch.from_numpy(rng.normal(size=n).astype(np.float32))
        weight = torch.from_numpy(base + 0.3 * rng.normal(size=base.shape).astype(np.float32))
        report = FailureReport(
            examples=n,
            accuracy=None,
            classes=tuple(ClassReport(name, n // classes, pattern=True) for name in names),
            epoch=epoch,
        )
        directions = FailureDirections(
            classes=torch.arange(classes),
            weight=weight,
            bias=nothing.float(),
            cv_score=nothing,
            cv_score_stderr=nothing,
            c=nothing,
            p_value=nothing,
            mean=torch.zeros(dim),
            std=torch.ones(dim),
            out_of_fold=values,
            **without_effects(classes, n),
        )
        grades = Grades(torch.arange(n), labels, (labels + failed) % classes, torch.ones(n), names)
        result = AnalysisResult(report, directions, table=ExampleTable.of(grades, values, {}))
        start = time.process_time()  # others may use the machine
        diary, modes = advance(diary, result)
        times.append(time.process_time() - start)
        assert len(modes) == classes
    return float(np.median(times[3:]))


def summary(rows: list[ModeSimilarity]) -> dict[str, Any]:
    """Quantiles."""
    cosine, shared = (
        [value for value in column if value is not None] for column in zip(*map(_pair, rows), strict=True)
    )
    marks = (1, 5, 50, 95, 99)
    return {
        "pairs": len(rows),
        "cosine": dict(zip(map(str, marks), np.percentile(cosine, marks).round(3).tolist(), strict=True)),
        "shared": dict(zip(map(str, marks), np.percentile(shared, marks).round(3).tolist(), strict=True)),
    }


def _pair(one: ModeSimilarity) -> tuple[float, float | None]:
    return one.cosine, one.shared


def main() -> None:
    """Run all parts."""
    torch.set_num_threads(1)
    options = read_options(__doc__, seeds=range(6), name="diary")
    rng = np.random.default_rng(0)
    pairs: Pairs = {}
    kept, total, statuses = 0, 0, Counter[str]()
    for seed in progress(options.seeds, "training"):
        analyses = train(seed)
        for kind, pair in itertools.chain(training_pairs(analyses), attribute_pairs(analyses, rng)):
            pairs.setdefault(kind, []).append(pair)
        counts = names_kept(analyses)
        kept, total, statuses = kept + counts[0], total + counts[1], statuses + counts[2]
    for kind, pair in noise_pairs(rng):
        pairs.setdefault(kind, []).append(pair)
    rule = (matching.COSINE_WEIGHT, matching.SAME_MODE_SIMILARITY)
    found = {
        "command": "python benchmarks/diary.py",
        "seeds": options.seeds,
        "epochs": EPOCHS,
        "rule": {"cosine_weight": rule[0], "threshold": rule[1], "errors": rule_errors(pairs, *rule)},
        "rules": best_rules(pairs),
        "pairs": {kind: summary(rows) for kind, rows in sorted(pairs.items())},
        "names": {"sightings": total, "kept": kept, "statuses": dict(statuses)},
        "order": change_of_order(rng),
        "steady": steady(rng),
        "drifting": drifting(rng),
        "seconds_of_an_advance": round(seconds_of_an_advance(), 4),
    }
    options.output.write_text(json.dumps(found, indent=2) + "\n")
    for kind, rows in sorted(found["pairs"].items()):
        cosine, shared = rows["cosine"], rows["shared"]
        print(
            f"{kind:36} {rows['pairs']:6} pairs, cosine {cosine['5']:5.2f} {cosine['50']:5.2f} {cosine['95']:5.2f}, "
            f"shared {shared['5']:.2f} {shared['50']:.2f} {shared['95']:.2f}, "
            f"wrong {found['rule']['errors'][kind]:.4f}"
        )
    for key in ("rules", "names", "order", "steady", "drifting", "seconds_of_an_advance"):
        print(key, found[key])


if __name__ == "__main__":
    main()
