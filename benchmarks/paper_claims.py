"""The claims of the paper, in small on coloured digits: paired seeds, raw figures, and whether each claim holds.

    python benchmarks/paper_claims.py
    python benchmarks/paper_claims.py --seeds 1 2 3 --claims flagged upweight filter prompts decode strength captions \
        --output FILE.json
    python benchmarks/paper_claims.py --claims sparse                 # the claims of another paper
    python benchmarks/paper_claims.py --table                         # the Markdown table of what is in the file
    python benchmarks/paper_claims.py --data coloured_mnist           # the paper's binary Coloured MNIST
    python benchmarks/paper_claims.py --claims papers --seeds 11 12 13 14 --output benchmarks/results/papers.json

``papers`` stands for further claims: the CV score against the degree of what is planted, captions against Domino's,
validation distributed like training, a corruption that weights do not fix, and transfer to other networks.

Source: Jain, Lawrence, Moitra and Madry, Distilling Model Failures as Directions in Latent Space, ICLR 2023. Of the
claim ``sparse``: Wong, Santurkar and Madry, Leveraging Sparse Linear Layers for Debuggable Deep Networks, ICML 2021.

A claim holds if the lower end of the paired 90 % interval of (first arm - second arm) over seeds, by Student's t, is
above 0; for "not below by ...", above minus that. Each seed draws its own tints, images, weights and orders; constants
were chosen on seeds 0 to 3, the default seeds are others. All arms train on 3,000 images, for 6 epochs from scratch or
for 3 more from the checkpoint of the plain model, which is trained as long.

The figures of a seed are written at once, and seeds in the output file are not run again, so an interrupted run
resumes. One core, five minutes per seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from claims import CLAIMS, OTHER_PAPERS, PAPERS
from claims.common import World
from claims.comparing import compare

from lightning_failures.core.atomic import write_atomically

SEEDS = range(11, 19)
WAYS = ("retrained", "continued")
ALL = {**CLAIMS, **PAPERS, **OTHER_PAPERS}


def read_result(path: Path) -> dict[str, Any]:
    """Return the content of the file, empty if the file does not exist."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {"claims": [], "raw": {}} | found


def summarise(raw: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of raw figures {claim: {seed: tables}}, in the order of the claims."""
    entries = []
    for claim, (_, comparisons) in ALL.items():
        if claim in raw:
            measured = {int(seed): tables for seed, tables in raw[claim].items()}
            entries += [compare(claim, comparison, measured) for comparison in comparisons]
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """Return a Markdown table: one row per claim, and one column per training where there are two."""
    rows: dict[str, dict[str, str]] = {}
    for entry in entries:
        name, _, way = entry["name"].rpartition(", ")
        if way not in WAYS:
            name, way = entry["name"], WAYS[0]
        rows.setdefault(name, {})[way] = cell(entry)
    lines = [f"| claim | {' | '.join(WAYS)} |", f"| {' | '.join(['---'] * (1 + len(WAYS)))} |"]
    lines += [f"| {name} | {' | '.join(cells.get(way, '') for way in WAYS)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def cell(entry: dict[str, Any]) -> str:
    """Return whether the claim holds, the means of both arms, the difference and its interval."""
    seeds = entry["seeds"]
    if not seeds:
        return "not defined in any seed"
    first, second = (sum(row[entry[arm]] for row in seeds) / len(seeds) for arm in ("first", "second"))
    interval = "" if entry["interval"] is None else " [{:+.3f}, {:+.3f}]".format(*entry["interval"])
    left_out = f" ({len(seeds)} seeds)" if "seeds_left_out" in entry else ""
    holds = "yes" if entry["holds"] else "**no**"
    return f"{holds}: {first:.3f} - {second:.3f} = {entry['difference']:+.3f}{interval}{left_out}"


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the whole file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())


def run_claims(seeds: list[int], claims: list[str], path: Path) -> None:
    """Run the claims that are not in the file yet; the claims of a seed share its models."""
    result = read_result(path)
    for seed in seeds:
        world = World(seed)
        for claim in claims:
            if str(seed) in result["raw"].get(claim, {}):
                continue
            print(f"seed {seed}, {claim}", file=sys.stderr, flush=True)
            began = time.perf_counter()
            measured = ALL[claim][0](world)
            measured["seconds"] = round(time.perf_counter() - began, 1)
            result = read_result(path)
            result["raw"].setdefault(claim, {})[str(seed)] = measured
            result["claims"] = summarise(result["raw"])
            write(path, result)


def main() -> None:
    """Run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--claims", nargs="+", choices=[*ALL, "papers"], default=list(CLAIMS))
    parser.add_argument("--data", choices=("coloured_digits", "coloured_mnist"), default="coloured_digits")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/paper_claims.json"))
    parser.add_argument("--table", action="store_true", help="run nothing, print the table of the output file")
    options = parser.parse_args()
    claims = [name for one in options.claims for name in (PAPERS if one == "papers" else (one,))]
    torch.set_num_threads(1)
    if options.table:
        pass
    elif options.data == "coloured_mnist":
        from coloured_mnist import run

        found = run(options.seeds)
        write(options.output, read_result(options.output) | {"coloured_mnist": found})
        return
    else:
        run_claims(options.seeds, claims, options.output)
    print(table(read_result(options.output)["claims"]))


if __name__ == "__main__":
    main()
