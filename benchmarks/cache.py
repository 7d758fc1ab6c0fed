"""The embedding cache against simple alternatives, alternated in one run: opening, cold reads, writing, memory.

    python benchmarks/cache.py
    python benchmarks/cache.py --quick
    python benchmarks/cache.py --batches

Takes about three times the size of the embeddings (256 MiB; 32 MiB with ``--quick``) in ``--folder``, which must be on
a disk for cold reads: before each read the pages of the file are dropped from memory, and their absence is checked.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import mmap
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import xxhash

from lightning_failures.encoders.cache.shard_file import read_shard
from lightning_failures.encoders.cache.store import EmbeddingCache, EmbeddingStore

DIM, CLASSES = 512, 1000
Figures = dict[str, float]


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the time of one call."""
    start = clock()
    work()
    return clock() - start


def spread(ratios: list[float]) -> Figures:
    """Return median and range."""
    return {"median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios), "rounds": len(ratios)}


def compared(over: Callable[[], object], under: Callable[[], object], rounds: int) -> Figures:
    """Return the ratio of the CPU times of two functions, alternated, with a warm page cache."""
    over(), under()
    clock = time.process_time
    return spread([seconds(over, clock) / seconds(under, clock) for _ in range(rounds)])


def shards(folder: Path) -> list[Path]:
    """Return the files of a cache."""
    return sorted(folder.rglob("*.safetensors"))


def filled(folder: Path, keys: torch.Tensor, values: torch.Tensor) -> Path:
    """Return a cache with one shard, filled in the order of the keys."""
    store = EmbeddingCache(folder).store("benchmark")
    store.put(keys, values)
    store.flush()
    return folder


def bare(folder: Path, digest: Callable[[mmap.mmap], object] = xxhash.xxh3_128_digest) -> None:
    """Map the files of a cache and hash them."""
    for path in shards(folder):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            digest(mapped)


def put_by_rows(keys: torch.Tensor, values: torch.Tensor) -> dict[bytes, np.ndarray]:
    """Store rows in a dictionary, with the same check of rounding as the cache."""
    rows, half = values.numpy(), values.numpy().astype(np.float16)
    fits = np.linalg.norm(half.astype(np.float32) - rows, axis=1) <= np.linalg.norm(rows, axis=1) / 1024
    store: dict[bytes, np.ndarray] = {}
    for key, row, row16, fit in zip(keys.numpy(), rows, half, fits, strict=True):
        store.setdefault(key.tobytes(), row16 if fit else row)
    return store


def warm(one: Path, many: Path, keys: torch.Tensor, values: torch.Tensor, rounds: int) -> dict[str, object]:
    """Measure the CPU time of all operations that do not wait for a disk."""

    def opened(folder: Path) -> EmbeddingStore:
        return EmbeddingCache(folder).store("benchmark")

    results: dict[str, object] = {}
    for folder, number in ((one, 1), (many, 64)):
        results[f"open and verify / map and xxh3, {number} shard(s)"] = compared(
            lambda folder=folder: opened(folder), lambda folder=folder: bare(folder), rounds
        )
    results["map and SHA-256 / map and xxh3"] = compared(
        lambda: bare(one, hashlib.sha256), lambda: bare(one), max(rounds // 5, 1)
    )
    split, whole = opened(many), opened(one)
    results["get all rows, 64 shards / 1 shard"] = compared(
        lambda: split.get(keys), lambda: whole.get(keys), max(rounds // 5, 1)
    )
    results["a dictionary of rows / put"] = compared(
        lambda: put_by_rows(keys, values), lambda: EmbeddingStore("benchmark").put(keys, values), max(rounds // 3, 1)
    )
    return results


def small_shards(folder: Path, keys: torch.Tensor, values: torch.Tensor, parts: int) -> Path:
    """Return a cache with a number of shards that have not been joined, as earlier versions left them."""
    for number, (some, rows) in enumerate(zip(keys.chunk(parts), values.chunk(parts), strict=True)):
        (path,) = shards(filled(folder / "parts" / str(number), some, rows))
        target = folder / "cache" / path.relative_to(folder / "parts" / str(number))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return folder / "cache"


def batches_of_4(root: Path, rounds: int) -> dict[str, object]:
    """Measure the CPU time of 100 batches of 4 known images, in caches of 1, 200 and 1,000 shards of 4 rows each.

    Each batch asks three times which keys are missing, as the callback does. The time to open is left out.
    """
    numbers = (1, 200, 1000)
    rng = np.random.default_rng(2)
    keys = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, (4 * max(numbers), 2)))
    values = torch.randn(len(keys), DIM, generator=torch.Generator().manual_seed(2))
    asked = [keys[:400][rng.permutation(400)[:4]] for _ in range(100)]
    folders = {number: small_shards(root / str(number), keys, values, number) for number in numbers}
    results: dict[str, object] = {}
    for state in ("as found", "after the first flush"):
        stores = {number: EmbeddingCache(folder).store("benchmark") for number, folder in folders.items()}
        if state != "as found":
            for store in stores.values():
                store.flush()
        times: dict[int, list[float]] = {number: [] for number in numbers}

        def look_up(store: EmbeddingStore) -> None:
            for batch in asked:
                for _ in range(3):
                    assert not store.missing(batch).any()

        for _ in range(rounds):
            for number, store in stores.items():
                times[number].append(seconds(lambda store=store: look_up(store), time.process_time))
        results[f"100 batches of 4, {state}, CPU seconds"] = {
            f"{number} shard(s)": spread(taken) for number, taken in times.items()
        }
        one = np.array(times[1])
        results[f"100 batches of 4, {state}, ratio"] = {
            f"{number} shards / 1 shard": spread((np.array(times[number]) / one).tolist()) for number in numbers[1:]
        }
        results[f"files, {state}"] = {f"{number} shard(s)": len(shards(folders[number])) for number in numbers}
    return results


def in_memory(path: Path) -> float:
    """Return the share of a file's pages that are in memory."""
    pages = -(-path.stat().st_size // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        anchor = ctypes.c_char.from_buffer(mapped)
        address, length = ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(len(mapped))
        failed = ctypes.CDLL(None).mincore(address, length, vector)
        del anchor  # so that the map can be closed
    return 1.0 if failed else float((np.frombuffer(vector, np.uint8) & 1).mean())


def drop(path: Path) -> float:
    """Drop a file's pages from memory; return the share that remains."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return in_memory(path)


def cold_reads(
    by_class: Path, scattered: Path, keys_of: Callable[[int], torch.Tensor], rounds: int
) -> dict[str, object]:
    """Measure the wall time of reading one class from files that are not in memory."""

    def stored(folder: Path) -> Callable[[torch.Tensor], object]:
        return EmbeddingCache(folder).store("benchmark").get

    def plain(folder: Path) -> Callable[[torch.Tensor], object]:
        shard = read_shard(shards(folder)[0], "benchmark")
        return lambda keys: shard.embeddings[shard.find(keys.numpy())].astype(np.float32)

    def without_read_ahead(folder: Path) -> Callable[[torch.Tensor], object]:
        shard = read_shard(shards(folder)[0], "benchmark")
        address = shard.embeddings.ctypes.data
        start = address - address % mmap.PAGESIZE
        length = ctypes.c_size_t(shard.embeddings.nbytes + address - start)
        assert ctypes.CDLL(None).madvise(ctypes.c_void_p(start), length, mmap.MADV_RANDOM) == 0
        return lambda keys: shard.embeddings[shard.find(keys.numpy())].astype(np.float32)

    ways = {
        "class order": (stored, by_class),
        "scattered": (stored, scattered),
        "class order, plain map": (plain, by_class),
        "scattered, plain map": (plain, scattered),
        "scattered, map without read-ahead": (without_read_ahead, scattered),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    left, read = 0.0, dict.fromkeys(ways, 0.0)
    for number in np.random.default_rng(1).permutation(CLASSES)[:rounds].tolist():
        keys = keys_of(number)
        for way, (opened, folder) in ways.items():
            get, path = opened(folder), shards(folder)[0]
            left = max(left, drop(path))
            times[way].append(seconds(lambda get=get, keys=keys: get(keys), time.perf_counter))
            read[way] = max(read[way], in_memory(path))
    if left > 0.01:
        return {"left in memory": left, "note": "this file system keeps pages in memory: nothing here is cold"}
    best = np.array(times["class order"])
    device = by_class.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return {
        "left in memory": left,
        "read-ahead of the disk in KiB": int(setting.read_text()) if setting.exists() else None,
        "share of the file that one class read": read,
        "wall seconds": {way: spread(taken) for way, taken in times.items()},
        "ratio": {f"{way} / class order": spread((np.array(times[way]) / best).tolist()) for way in list(ways)[1:]},
    }


def peak_memory(folder: Path, keys: torch.Tensor) -> Figures:
    """Return the growth of resident memory while a cache is opened and one class read, as a share of the file."""

    def field(name: str) -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split(f"{name}:")[1].split()[0])

    bare(folder)  # loads what is needed, and its pages were unmapped again
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = field("VmRSS")
    store = EmbeddingCache(folder).store("benchmark")
    opened = field("VmHWM") - start
    store.get(keys)
    size = shards(folder)[0].stat().st_size
    return {"open": opened / size, "open and get a class": (field("VmHWM") - start) / size}


def table(results: dict[str, object], indent: str = "") -> None:
    """Print nested figures."""
    for name, value in results.items():
        if isinstance(value, dict) and "median" in value:
            median, low, high, rounds = value.values()
            print(f"{indent}{name}: {median:.3g} ({low:.3g} to {high:.3g}, {rounds} rounds)")
        elif isinstance(value, dict):
            print(f"{indent}{name}")
            table(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value:.3g}" if isinstance(value, float) else f"{indent}{name}: {value}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32,768 rows instead of 262,144")
    parser.add_argument("--batches", action="store_true", help="only the look-ups of small batches in many shards")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path(), help="for temporary files; on the disk to measure")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cache.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.batches:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            results = batches_of_4(Path(name), arguments.rounds)
        table(results)
        known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
        arguments.output.write_text(json.dumps(known | results, indent=1) + "\n")
        return
    n, rounds = 32_768 if arguments.quick else 262_144, arguments.rounds
    rng = np.random.default_rng(0)
    keys = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, (n, 2)))
    values = torch.randn(n, DIM, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) * CLASSES // n
    shuffled = torch.from_numpy(rng.permutation(n))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        one, many = filled(root / "one", keys, values), small_shards(root / "many", keys, values, 64)
        scattered = filled(root / "scattered", keys[shuffled], values[shuffled])
        results = {"rows": n, "dim": DIM, "classes": CLASSES} | warm(one, many, keys, values, rounds)
        results |= batches_of_4(root / "batches", rounds)
        if hasattr(os, "posix_fadvise"):
            results["cold reads of one class, wall time"] = cold_reads(
                one, scattered, lambda k: keys[labels == k], rounds
            )
        if Path("/proc/self/clear_refs").exists():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                results["peak memory / size of the file"] = pool.submit(peak_memory, one, keys[labels == 0]).result()
    table(results)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
