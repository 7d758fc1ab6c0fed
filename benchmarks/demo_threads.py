"""One or two torch threads for the training of the demo, alternated epoch by epoch in one run.

python benchmarks/demo_threads.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from digits import progress, train


def main() -> None:
    """Print the ratio of the wall times and its spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    train(0, 0.95, epochs=1)  # warm up
    ratios = []
    for _ in progress(range(arguments.rounds), "round"):
        seconds = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            start = time.perf_counter()
            train(0, 0.95, epochs=2)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    print(f"two threads / one thread: {middle:.2f} (10 to 90 %: {low:.2f} to {high:.2f}, {arguments.rounds} rounds)")


if __name__ == "__main__":
    main()
