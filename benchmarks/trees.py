"""Failure trees: speed against the published feature selection, and calibration of their scores.

    python benchmarks/trees.py
    python benchmarks/trees.py --sections speed intervals

Sections: ``speed``, CPU times of the peer and ours, alternated; ``heldout``, paired held-out ALER - BER under both
selections of features, on simulated groups and on coloured digits; ``intervals``, how often the interval of a leaf
covers its error rate on fresh data; ``null``, held-out ALER - BER and its test without a pattern, and its power with
one. Seeds from 20,000 on were not used while the methods were developed. All sections take about ten times as long as
the demo, most of it in ``mutual_info_classif``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import digits_encoder, grade, train
from numpy.typing import NDArray
from sklearn.feature_selection import mutual_info_classif
from sklearn.tree import DecisionTreeClassifier

from lightning_failures.encoders import load_encoder
from lightning_failures.stats.intervals import wilson_interval
from lightning_failures.trees import fit_failure_tree, information_gain
from lightning_failures.trees.growing import grow_trees
from lightning_failures.trees.information_gain import best_features

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
FRESH_SEED = 20_000
MIN_FAILURES = 20


def simulate(rng: np.random.Generator, n: int, chance: str, *, per_source: int = 1, dim: int = 60) -> Arrays:
    """Draw features (n, dim), failure probabilities and sources of examples; the examples of a source are similar.

    Probabilities: "null"; "step" and "steep", higher above a threshold; "gradual", rising with two features.
    """
    sources = -(-n // per_source)
    source = np.repeat(np.arange(sources), per_source)[:n]
    own, luck = rng.normal(size=(n, dim)), np.zeros(n)
    if per_source > 1:
        own = np.sqrt(0.5) * (own + rng.normal(size=(sources, dim))[source])
        luck = 0.8 * rng.normal(size=sources)[source]
    a, b = own[:, 0], own[:, 1]
    odds = {
        "null": 0 * a,
        "step": 0.9 * (a > 0.7),
        "steep": 2.2 * (a > 0.7) + (a > 0.7) * (b > 0),
        "gradual": 0.8 * a + 0.5 * b,
    }[chance]
    return own.astype(np.float32), 1 / (1 + np.exp(1.1 - odds - luck)), source


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def speed(rounds: int) -> dict[str, Any]:
    """Measure the feature selection, selection and tree, and the whole fit with five folds."""
    result: dict[str, Any] = {}
    for n in (250, 1300):
        rng = np.random.default_rng(n)
        x = rng.normal(size=(n, 2048)).astype(np.float32)
        failed = rng.random(n) < np.where(x[:, 0] > 0.7, 0.6, 0.25)
        weights = {0: 1.0, 1: (~failed).sum() / failed.sum()}
        top = np.argsort(-information_gain(x, failed), kind="stable")[:20]

        def published_tree(x: Any = x[:, top], y: Any = failed, w: Any = weights) -> object:
            return DecisionTreeClassifier(criterion="entropy", max_depth=3, class_weight=w, random_state=0).fit(x, y)

        work: dict[str, Callable[[], object]] = {
            "published selection": lambda x=x, y=failed: mutual_info_classif(x, y, random_state=0),  # type: ignore[misc]
            "published tree": published_tree,
            "our selection": lambda x=x, y=failed: best_features(x, y, None, [1], 20),  # type: ignore[misc]
            "our tree": lambda x=x, y=failed, t=top: grow_trees(x, y, None, [t], max_depth=3, min_leaf=None),  # type: ignore[misc]
            "ours with five folds": lambda x=x, y=failed: fit_failure_tree(x, y),  # type: ignore[misc]
        }
        for name in ("our selection", "ours with five folds"):
            work[name]()  # compiles
        seconds = {name: [0.0] * rounds for name in work}
        for i in range(rounds):
            for name, call in work.items():
                seconds[name][i] = cpu_seconds(call)
        s = {name: np.array(values) for name, values in seconds.items()}
        ratios = {
            "selection": s["published selection"] / s["our selection"],
            "selection and tree": (s["published selection"] + s["published tree"])
            / (s["our selection"] + s["our tree"]),
            "one published selection / ours with five folds": s["published selection"] / s["ours with five folds"],
        }
        gain = information_gain(x, failed)
        off = max(abs(gain[j] - depth_1_gain(x[:, j], failed, weights)) for j in range(x.shape[1]))
        print(f"speed, {n} x 2048 (CPU time, published / ours; median, least and most of {rounds} rounds)")
        for name, values in ratios.items():
            print(f"  {name:<48} {np.median(values):6.0f} x ({values.min():.0f} to {values.max():.0f})")
        print(f"  largest difference from a depth-1 tree on one feature: {off:.1e}", flush=True)
        result[str(n)] = {"seconds": seconds, "largest difference": off}
        result[str(n)]["ratios"] = {name: values.tolist() for name, values in ratios.items()}
    return result


def depth_1_gain(feature: NDArray[Any], failed: NDArray[Any], weights: dict[int, float]) -> float:
    """Return the gain of scikit-learn's tree by one split on the feature, in bits."""
    stump = DecisionTreeClassifier(criterion="entropy", max_depth=1, class_weight=weights)
    tree = stump.fit(feature[:, None], failed).tree_
    share = tree.weighted_n_node_samples / tree.weighted_n_node_samples[0]
    return float(tree.impurity[0] - share[1:] @ tree.impurity[1:])


def heldout(seeds: list[int], simulated: int) -> dict[str, Any]:
    """Return held-out ALER - BER of our selection minus that of the published selection, group by group."""
    result: dict[str, Any] = {}
    for name, groups in (("simulated", simulated_groups(simulated)), ("coloured digits", digit_groups(seeds))):
        rows = []
        for x, failed, source in groups:
            ours, published = (
                fit_failure_tree(x, failed, groups=source, feature_selection=how)
                for how in ("information_gain", "mutual_information")
            )
            rows.append([ours.heldout_aler_minus_ber, published.heldout_aler_minus_ber])
        table = np.array(rows)
        difference = table[:, 0] - table[:, 1]
        half = 1.645 * difference.std(ddof=1) / np.sqrt(len(difference))
        print(
            f"held-out ALER - BER, {len(table)} groups of {name}: ours {table[:, 0].mean():.3f}, published"
            f" {table[:, 1].mean():.3f}, difference {difference.mean():+.3f}"
            f" [{difference.mean() - half:+.3f}, {difference.mean() + half:+.3f}] (90 %)",
            flush=True,
        )
        interval = [difference.mean() - half, difference.mean() + half]
        result[name] = {"ours, published": rows, "difference": difference.mean(), "interval": interval}
    return result


def simulated_groups(count: int) -> Iterator[Arrays]:
    """Yield groups of both sizes with a pattern among 256 features."""
    for seed in range(count):
        rng = np.random.default_rng(FRESH_SEED + seed)
        chance, n = ("step", "steep", "gradual")[seed % 3], (250, 1300)[seed // 3 % 2]
        x, p, source = simulate(rng, n, chance, dim=256)
        yield x, rng.random(n) < p, source


def digit_groups(seeds: list[int]) -> Iterator[Arrays]:
    """Yield the label and prediction groups of the demo's classifier with enough failures, on robust features."""
    encoder, clip = load_encoder("embedded:digits", robust=True), digits_encoder()
    for seed in seeds:
        model, data = train(seed, 0.95)
        split = grade(model, data.sets["validation"], clip)
        rows = torch.arange(len(split.data)).split(512)
        features = torch.cat([encoder.encode_images(split.data.images[r].float() / 255) for r in rows])
        assert split.grades.groups is not None
        for column in (split.grades.labels, split.grades.predictions):
            for k in range(10):
                mine = column == k
                if int(split.grades.failed[mine].sum()) >= MIN_FAILURES:
                    group = (features[mine], split.grades.failed[mine], split.grades.groups[mine])
                    yield tuple(values.numpy() for values in group)  # type: ignore[misc]


def intervals(groups: int) -> dict[str, Any]:
    """Measure how often the interval of a leaf covers its error rate on 20,000 fresh examples."""
    result, every = {}, []
    print(
        "leaf intervals: share that hold the leaf's error rate on fresh data (95 % interval of the share), mean width"
    )
    for chance in ("null", "step", "steep", "gradual"):
        for n in (250, 1300):
            for per_source in (1, 5):
                rows = []
                for seed in range(groups if n == 250 else groups // 2):
                    rng = np.random.default_rng([FRESH_SEED, seed, n, per_source, len(chance)])
                    x, p, source = simulate(rng, n, chance, per_source=per_source)
                    tree = fit_failure_tree(x, rng.random(n) < p, groups=source)
                    fresh, truth, _ = simulate(rng, 20_000, chance, per_source=per_source)
                    leaf_of = tree.apply(fresh).numpy()
                    for i, leaf in enumerate(tree.leaves):
                        if leaf.interval is not None and (leaf_of == i).any():
                            rows.append([float(truth[leaf_of == i].mean()), *leaf.interval])
                name = f"{chance}, n = {n}" + (f", {per_source} a source" if per_source > 1 else "")
                result[name] = share_covered(name, rows)
                every += rows
    named = share_covered("all", every)
    return {"settings": result, "all": named}


def share_covered(name: str, rows: list[list[float]]) -> dict[str, Any]:
    """Print and return the coverage of (truth, low, high) rows."""
    truth, low, high = np.array(rows).T
    covered = (low <= truth) & (truth <= high)
    interval = wilson_interval(int(covered.sum()), len(rows))
    print(
        f"  {name:<32} {covered.mean():.3f} [{interval[0]:.3f}, {interval[1]:.3f}]  width {(high - low).mean():.2f}"
        f"  ({len(rows)} leaves)",
        flush=True,
    )
    return {"coverage": covered.mean(), "interval": interval, "width": (high - low).mean(), "leaves": len(rows)}


def null(groups: int) -> dict[str, Any]:
    """Measure centre and level of the test on null groups, and its power by the excess error rate of a slice."""
    result: dict[str, Any] = {"null": {}, "power": {}}
    print("null groups: mean held-out ALER - BER and its standard error; share with p <= 0.05")
    for n, per_source in ((250, 1), (250, 5), (1300, 1), (1300, 5)):
        fits = []
        for seed in range(groups):
            rng = np.random.default_rng([FRESH_SEED, seed, n, per_source])
            x, p, source = simulate(rng, n, "null", per_source=per_source)
            tree = fit_failure_tree(x, rng.random(n) < p, groups=source)
            fits.append([tree.heldout_aler_minus_ber, tree.heldout_aler_stderr, tree.p_value])
        gain, stderr, p_value = np.array(fits).T
        row = {
            "mean": gain.mean(),
            "stderr of mean": gain.std(ddof=1) / np.sqrt(groups),
            "p <= 0.05": (p_value <= 0.05).mean(),
            "sd": gain.std(ddof=1),
            "mean stated stderr": stderr.mean(),
        }
        result["null"][f"{n}, {per_source} a source"] = row
        print(
            f"  n = {n:<5} {per_source} a source  {row['mean']:+.4f} +- {row['stderr of mean']:.4f}"
            f"  p <= 0.05: {row['p <= 0.05']:.3f}  spread / stated {row['sd'] / row['mean stated stderr']:.2f}",
            flush=True,
        )
    excess = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
    print("power at p <= 0.05: a quarter of the examples fails more often than the other 0.25 by")
    print("  " + " " * 10 + "".join(f"{e:>7}" for e in excess))
    for n in (250, 1300):
        power = []
        for e in excess:
            found = 0
            for seed in range(groups // 4):
                rng = np.random.default_rng([FRESH_SEED, seed, n, int(100 * e)])
                x, _, _ = simulate(rng, n, "null")
                found += fit_failure_tree(x, rng.random(n) < 0.25 + e * (x[:, 0] > 0.674)).p_value <= 0.05
            power.append(found / (groups // 4))
        result["power"][str(n)] = dict(zip(map(str, excess), power, strict=True))
        print(f"  n = {n:<6}" + "".join(f"{share:7.2f}" for share in power), flush=True)
    return result


def main() -> None:
    """Run the selected sections and write their raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("speed", "heldout", "intervals", "null")
    parser.add_argument("--sections", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=3, help="of the speed section")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11], help="of the coloured digits")
    parser.add_argument("--groups", type=int, default=300, help="simulated for each setting of 'null'")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/trees.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speed(arguments.rounds),
        "heldout": lambda: heldout(arguments.seeds, simulated=max(2, arguments.groups // 12)),
        "intervals": lambda: intervals(max(2, arguments.groups // 3)),
        "null": lambda: null(arguments.groups),
    }
    figures = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    for name in arguments.sections:
        figures[name] = sections[name]()
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
