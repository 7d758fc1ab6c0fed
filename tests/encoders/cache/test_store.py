"""The embedding cache: never a wrong embedding, whatever happens to its files."""

import multiprocessing
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lightning_failures.core.home import default_cache_folder
from lightning_failures.encoders.cache.store import (
    MAX_SMALL_SHARDS,
    EmbeddingCache,
    EmbeddingStore,
    content_keys,
    embed,
)
from lightning_failures.errors import CacheError, DataError


class CountingEncoder:
    """Embeds an image as its first pixels, and counts what it is asked."""

    name, dim = "counting", 4

    def __init__(self, fingerprint="f" * 32, offset=0.0):
        self.fingerprint = fingerprint
        self.offset = offset
        self.encoded = 0

    def encode_images(self, images):
        self.encoded += len(images)
        return images.flatten(1)[:, :4] + self.offset


def batch(n=6, seed=0):
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def shards(folder):
    return sorted(Path(folder).rglob("*.safetensors"))


def filled(folder, n=6, dim=4, seed=0, **options):
    store = EmbeddingCache(folder, **options).store("f")
    keys = content_keys(batch(n, seed))
    store.put(keys, torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)))
    store.flush()
    return store, keys


# ----------------------------------------------------------------------------------------------------------------- keys


def test_content_keys__tell_images_apart():
    images = batch(1)
    changed = images.clone()
    changed[0, 2, 3, 3] = torch.nextafter(changed[0, 2, 3, 3], torch.tensor(1.0))
    variants = [
        content_keys(images),
        content_keys(changed),
        content_keys(images, salt="[0, 255]"),
        content_keys(images.reshape(1, 3, 2, 8)),
        content_keys(images.double()),
        content_keys(images.flip(3)),
        content_keys(images.view(torch.int32)),
    ]
    assert all(keys.shape == (1, 2) and keys.dtype == torch.int64 for keys in variants)
    assert len({tuple(keys[0].tolist()) for keys in variants}) == len(variants)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.bool])
def test_content_keys__depend_on_the_image_alone(dtype):
    images = (batch(5) * 2).to(dtype)
    keys = content_keys(images)
    assert torch.equal(torch.cat([content_keys(image[None]) for image in images]), keys)
    assert torch.equal(content_keys(images.to(memory_format=torch.channels_last)), keys)
    assert torch.equal(content_keys(images.flip(0)).flip(0), keys)
    with torch.inference_mode():
        assert torch.equal(content_keys(images.clone()), keys)


def test_content_keys__nothing():
    assert content_keys(torch.empty(0, 3, 4, 4)).shape == (0, 2)


def test_content_keys__same_in_every_process():
    assert content_keys(torch.zeros(1, 1, 2, 2)).tolist() == [[6543159933768766141, 7481817159685943108]]


# ---------------------------------------------------------------------------------------------------------- life of one


def test_embed__second_pass_encodes_nothing(tmp_path):
    encoder, images = CountingEncoder(), batch()
    first = EmbeddingCache(tmp_path).store(encoder.fingerprint)
    keys = embed(encoder, first, images)
    assert encoder.encoded == 6
    values = first.get(keys)
    embed(encoder, first, images)
    first.flush()
    embed(encoder, first, images)
    second = EmbeddingCache(tmp_path).store(encoder.fingerprint)
    assert torch.equal(embed(encoder, second, images), keys)
    assert encoder.encoded == 6
    for later in (first.get(keys), second.get(keys), second.get(keys.flip(0)).flip(0)):
        assert torch.equal(later, values)  # bit for bit
    torch.testing.assert_close(values, images.flatten(1)[:, :4], atol=1e-3, rtol=1e-3)
    assert values.dtype == torch.float32


def test_embed__encodes_a_duplicate_once():
    encoder, images = CountingEncoder(), batch(3)
    store = EmbeddingStore(encoder.fingerprint)
    images = torch.cat([images, images[:2], images[1:]])
    values = store.get(embed(encoder, store, images))
    assert encoder.encoded == 3
    torch.testing.assert_close(values, images.flatten(1)[:, :4], atol=1e-3, rtol=1e-3)


def test_embed__keys_of_the_images_as_loaded():
    encoder, images = CountingEncoder(), batch()
    store = EmbeddingStore(encoder.fingerprint)
    keys = content_keys(images * 2 - 1, salt="mean 0.5, std 0.5")
    assert embed(encoder, store, images, keys=keys) is keys
    assert not store.missing(keys).any()
    assert store.missing(content_keys(images)).all()


def test_embed__another_encoder_embeds_again(tmp_path):
    cache, images = EmbeddingCache(tmp_path), batch()
    old, new = CountingEncoder("old"), CountingEncoder("new", offset=1.0)
    for encoder in (old, new, old):
        store = cache.store(encoder.fingerprint)
        values = store.get(embed(encoder, store, images))
        torch.testing.assert_close(values, images.flatten(1)[:, :4] + encoder.offset, atol=1e-3, rtol=1e-3)
        store.flush()
    assert (old.encoded, new.encoded) == (6, 6)


def test_store__what_was_put_first_stays():
    store = EmbeddingStore("f")
    keys = content_keys(batch(2))
    store.put(keys, torch.ones(2, 3))
    store.put(keys, torch.zeros(2, 3))
    store.flush()
    store.put(keys, torch.zeros(2, 3))
    assert torch.equal(store.get(keys), torch.ones(2, 3))


def test_store__many_shards(tmp_path):
    images = batch(40)
    keys = content_keys(images)
    store = EmbeddingCache(tmp_path).store("f")
    for start in range(0, 40, 8):
        store.put(keys[start : start + 8], images[start : start + 8].flatten(1))
        if start != 32:
            store.flush()
    expected = images.flatten(1).half().float()
    assert torch.equal(store.get(keys), expected)
    store.flush()
    assert len(shards(tmp_path)) == 5
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(EmbeddingCache(tmp_path).store("f").get(keys[order]), expected[order])


def test_store__lacking_and_wrong(tmp_path):
    store, keys = filled(tmp_path)
    with pytest.raises(CacheError, match="2 of 3 images"):
        store.get(torch.cat([keys[:1], keys[:2] + 1]))
    with pytest.raises(DataError, match=r"must return \(6, 4\) for 6 images; it returned \(6, 5\)"):
        store.put(keys, torch.zeros(6, 5))
    with pytest.raises(DataError, match=r"returned \(5, 4\)"):
        store.put(keys, torch.zeros(5, 4))
    with pytest.raises(DataError, match="keys must be"):
        store.missing(keys.float())
    assert store.get(keys[:0]).shape == (0, 4)
    store.flush()
    assert len(shards(tmp_path)) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_store__behaves_as_a_dictionary(pairs, flushes):
    """Keys from a small range share their first half, which the search has to get right."""
    store, model = EmbeddingStore("f"), {}
    for number, (pair, flush) in enumerate(zip(pairs, flushes, strict=False)):
        key = torch.tensor([pair])
        assert bool(store.missing(key)) == (pair not in model)
        store.put(key, torch.tensor([[float(number), 1.0]]))
        model.setdefault(pair, float(number))
        if flush:
            store.flush()
    everything = torch.tensor([(a, b) for a in range(-3, 4) for b in range(-3, 4)])
    known = torch.tensor([tuple(row) in model for row in everything.tolist()])
    assert torch.equal(~store.missing(everything), known)
    assert store.get(everything[known])[:, 0].tolist() == [model[tuple(row)] for row in everything[known].tolist()]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.booleans()), min_size=1, max_size=60), st.data())
def test_put__the_first_of_a_batch_stays(rows, data):
    """Also where of two rows with one key the one fits into half and the other does not."""
    store, model = EmbeddingStore("f"), {}
    while rows:
        size = data.draw(st.integers(1, len(rows)))
        some, rows = rows[:size], rows[size:]
        values = torch.tensor([[1e6 + i if large else float(i), 1.0] for i, (_, _, large) in enumerate(some)])
        store.put(torch.tensor([row[:2] for row in some]), values)
        for row, value in zip(some, values.tolist(), strict=True):
            model.setdefault(row[:2], value)
    keys = torch.tensor(list(model))
    assert store.get(keys).tolist() == list(model.values())
    store.flush(order=keys.flip(0))
    assert store.get(keys).tolist() == list(model.values())


def test_put__in_blocks_and_at_once_is_the_same():
    keys = torch.arange(4000).reshape(2000, 2)
    values = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    values[::7] *= 1e6
    whole, parts = EmbeddingStore("f"), EmbeddingStore("f")
    whole.put(keys, values)
    for some, rows in zip(keys.split(37), values.split(37), strict=True):
        parts.put(some, rows)
    assert torch.equal(whole.get(keys), parts.get(keys))
    assert torch.equal(whole.get(keys)[::7], values[::7])


def test_put__later_changes_of_the_tensor_do_not_matter():
    keys, values = content_keys(batch(2)), torch.tensor([[1.0, 2.0], [1e6, 1.0]])
    store = EmbeddingStore("f")
    store.put(keys, values)
    values.zero_()
    assert store.get(keys).tolist() == [[1.0, 2.0], [1e6, 1.0]]


def places_of(path):
    """Keys of a shard in the order in which their embeddings lie in the file."""
    with safe_open(path, "np") as file:
        return file.get_tensor("keys").T[np.argsort(file.get_tensor("places"))].tolist()


def test_flush__in_the_order_that_is_given(tmp_path):
    keys, unknown = content_keys(batch(6)), content_keys(batch(2, seed=1))
    values = torch.arange(18.0).reshape(6, 3)
    store = EmbeddingCache(tmp_path).store("f")
    store.put(keys, values)
    with pytest.raises(DataError, match="keys must be"):
        store.flush(order=keys.float())
    store.flush(order=torch.cat([keys[[4, 1]], unknown, keys[[4, 3]]]))
    assert places_of(shards(tmp_path)[0]) == keys[[4, 1, 3, 0, 2, 5]].tolist()
    for later in (store, EmbeddingCache(tmp_path).store("f")):
        assert torch.equal(later.get(keys), values)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of resident memory")
def test_store__opening_and_reading_some_does_not_load_all(tmp_path):
    keys = torch.arange(2 * 32_768).reshape(-1, 2)
    values = torch.randn(len(keys), 512, generator=torch.Generator().manual_seed(0))
    store = EmbeddingCache(tmp_path).store("f")
    store.put(keys, values)
    store.flush()
    del store
    size, before = EmbeddingCache(tmp_path).size(), resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    read = EmbeddingCache(tmp_path).store("f").get(keys[1000:1100])
    assert resident("VmHWM") - before < size / 4
    assert torch.equal(read, values[1000:1100].half().float())


def resident(field):
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def test_store__float32_where_half_does_not_hold_it(tmp_path):
    values = torch.tensor([[1.0, 2.0], [1e6, 1.0], [1e-7, 2e-7], [0.0, 0.0], [0.1, -0.3], [3e38, 3e38], [1e-30, 0.0]])
    keys = content_keys(batch(7))
    store = EmbeddingCache(tmp_path).store("f")
    store.put(keys, values)
    rounded = store.get(keys)
    store.flush()
    assert torch.equal(EmbeddingCache(tmp_path).store("f").get(keys), rounded)
    assert torch.equal(rounded[[1, 2, 5, 6]], values[[1, 2, 5, 6]])
    assert torch.equal(rounded[[0, 3, 4]], values[[0, 3, 4]].half().float())
    dtypes = set()
    for path in shards(tmp_path):
        with safe_open(path, "np") as file:
            dtypes.add(str(file.get_tensor("embeddings").dtype))
    assert dtypes == {"float16", "float32"}


def test_shard__is_a_safetensors_file(tmp_path):
    store, keys = filled(tmp_path)
    with safe_open(shards(tmp_path)[0], "np") as file:
        stored, places, embeddings = (file.get_tensor(name) for name in ("keys", "places", "embeddings"))
    assert embeddings.dtype == np.float16
    assert (np.diff(stored[0]) > 0).all()
    assert torch.equal(store.get(torch.from_numpy(stored.T.copy())), torch.from_numpy(embeddings[places]).float())
    assert stored.T[np.argsort(places)].tolist() == keys.tolist()  # in the order in which they were put


# --------------------------------------------------------------------------------------------------------------- damage


def reread(folder, keys, expected):
    """What a new process makes of a damaged folder: right embeddings or none, and at most one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = EmbeddingCache(folder).store("f")
    here = ~store.missing(keys)
    if here.any():
        assert torch.equal(store.get(keys[here]), expected[here])
    assert len(caught) <= 1
    return bool(here.all()), [str(warning.message) for warning in caught]


def test_damage__every_byte(tmp_path):
    store, keys = filled(tmp_path, n=3, dim=2)
    path, expected = shards(tmp_path)[0], store.get(keys)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    survived = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        intact, messages = reread(tmp_path, keys, expected)
        if position >= start:  # keys and embeddings
            assert not intact
        if not intact:
            assert "embedded again" in messages[0]
            assert not path.exists()  # so that the next run does not warn again
        survived += intact
    assert survived < start  # some flips in the header change nothing that is read


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_damage__truncated(tmp_path, keep):
    store, keys = filled(tmp_path)
    path, expected = shards(tmp_path)[0], store.get(keys)
    path.write_bytes(path.read_bytes()[:keep])
    intact, messages = reread(tmp_path, keys, expected)
    assert not intact
    assert len(messages) == 1


def test_damage__is_repaired_by_the_next_epoch(tmp_path):
    encoder, images = CountingEncoder("f"), batch()
    store = EmbeddingCache(tmp_path).store("f")
    expected = store.get(embed(encoder, store, images))
    store.flush()
    damaged = bytearray(shards(tmp_path)[0].read_bytes())
    damaged[-1] ^= 1
    shards(tmp_path)[0].write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"1 file\(s\) of the embedding cache .*wrong checksum; removed"):
        store = EmbeddingCache(tmp_path).store("f")
    assert torch.equal(store.get(embed(encoder, store, images)), expected)
    store.flush()
    assert encoder.encoded == 12
    assert not EmbeddingCache(tmp_path).store("f").missing(content_keys(images)).any()


def test_damage__a_shard_of_another_encoder(tmp_path):
    _, keys = filled(tmp_path)
    (tmp_path / "v2" / "f").rename(tmp_path / "v2" / "g")
    with pytest.warns(UserWarning, match="wrong checksum"):
        assert EmbeddingCache(tmp_path).store("g").missing(keys).all()


def test_damage__something_else_under_our_name(tmp_path):
    folder = tmp_path / "v2" / "f"
    folder.mkdir(parents=True)
    (folder / "a.safetensors").mkdir()
    (folder / "b.safetensors").write_text("not a shard")
    (folder / "notes.txt").write_text("a user's file")
    with pytest.warns(UserWarning, match=r"2 file\(s\)"):
        EmbeddingCache(tmp_path).store("f")
    assert (folder / "notes.txt").exists()


# --------------------------------------------------------------------------------------------------- places that refuse


def goes_on_in_memory(folder):
    encoder, images = CountingEncoder("f"), batch()
    store = EmbeddingCache(folder).store("f")
    keys = embed(encoder, store, images)
    with pytest.warns(UserWarning, match="LIGHTNING_FAILURES_CACHE") as caught:
        store.flush()
    assert len(caught) == 1
    more = batch(3, seed=1)
    more_keys = embed(encoder, store, more)
    store.flush()  # not a second warning
    embed(encoder, store, images)
    assert encoder.encoded == 9
    torch.testing.assert_close(store.get(keys), images.flatten(1)[:, :4], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(store.get(more_keys), more.flatten(1)[:, :4], atol=1e-3, rtol=1e-3)


def test_unwritable__below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    goes_on_in_memory(tmp_path / "file" / "cache")


@pytest.mark.skipif(sys.platform != "linux", reason="has no /proc")
def test_unwritable__folder_that_takes_no_files():
    goes_on_in_memory("/proc/self/cache")


def test_unwritable__fails_half_way(tmp_path):
    """A limit on the size of files stands for a full disk: the write itself fails, after its first bytes."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        goes_on_in_memory(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_unwritable__larger_than_the_limit(tmp_path):
    with pytest.warns(UserWarning, match="max_bytes=100"):
        store, keys = filled(tmp_path, max_bytes=100)
    assert not store.missing(keys).any()
    assert shards(tmp_path) == []


# ------------------------------------------------------------------------------------------------------ several writers


def write_in_a_process(folder, rank, start):
    torch.set_num_threads(1)
    store = EmbeddingCache(folder).store("f")
    start.wait(timeout=60)
    for part in range(8):  # half of each part is also written by the other process
        images = torch.cat([batch(4, seed=10 + part), batch(4, seed=100 * (rank + 1) + part)])
        store.put(content_keys(images), images.flatten(1))
        store.flush()


@pytest.mark.slow
def test_processes__write_at_the_same_time(tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    processes = [context.Process(target=write_in_a_process, args=(tmp_path, rank, start)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    store = EmbeddingCache(tmp_path).store("f")
    for seed in [*range(10, 18), *range(100, 108), *range(200, 208)]:
        images = batch(4, seed=seed)
        assert torch.equal(store.get(content_keys(images)), images.flatten(1).half().float())
    assert not list(tmp_path.rglob("*.tmp"))


def test_refresh__sees_what_another_store_wrote(tmp_path):
    mine, theirs = (EmbeddingCache(tmp_path).store("f") for _ in range(2))
    keys = content_keys(batch())
    theirs.put(keys, torch.ones(6, 4))
    theirs.flush()
    assert mine.missing(keys).all()
    mine.refresh()
    assert not mine.missing(keys).any()
    late, more = EmbeddingCache(tmp_path).store("f"), content_keys(batch(2, seed=1))
    theirs.put(more, torch.ones(2, 4))
    theirs.flush()
    assert torch.equal(late.get(more), torch.ones(2, 4))  # get looks again before it gives up


# --------------------------------------------------------------------------------------------------------- limit, purge


def test_evict__least_recently_opened_goes_first(tmp_path):
    _, old = filled(tmp_path, seed=0)
    size = EmbeddingCache(tmp_path).size()
    first = shards(tmp_path)[0]
    _, middle = filled(tmp_path, seed=1)
    second = next(path for path in shards(tmp_path) if path != first)
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    cache = EmbeddingCache(tmp_path, max_bytes=2 * size + size // 2)
    store = cache.store("other")
    store.put(content_keys(batch(6, seed=2)), torch.rand(6, 4))
    store.flush()
    assert not first.exists()
    assert second.exists()
    reader = EmbeddingCache(tmp_path).store("f")
    assert reader.missing(old).all()
    assert not reader.missing(middle).any()
    assert cache.size() <= cache.max_bytes


def test_evict__a_limit_below_what_the_run_uses_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_FAILURES_CACHE_SIZE", "2000 B")
    store = EmbeddingCache(tmp_path).store("f")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(8):
            store.put(content_keys(batch(6, seed=seed)), torch.rand(6, 40))
            store.flush()
    (only,) = caught
    assert "less than this run uses" in str(only.message)
    assert "LIGHTNING_FAILURES_CACHE_SIZE, for instance to '1 GiB'" in str(only.message)
    assert EmbeddingCache(tmp_path).size() <= 2000


def test_evict__opening_counts_as_use(tmp_path):
    filled(tmp_path)
    os.utime(shards(tmp_path)[0], (1, 1))
    EmbeddingCache(tmp_path).store("f")
    assert shards(tmp_path)[0].stat().st_mtime > 1


def test_evict__an_open_store_keeps_its_embeddings(tmp_path):
    store, keys = filled(tmp_path)
    expected = store.get(keys)
    assert EmbeddingCache(tmp_path, max_bytes=0).evict() > 0
    assert shards(tmp_path) == []
    assert torch.equal(store.get(keys), expected)


def test_close_unused__what_is_evicted_and_out_of_use(tmp_path):
    store, first = filled(tmp_path)
    more = batch(6, seed=1)
    store.put(content_keys(more), torch.ones(6, 4))
    store.flush()
    EmbeddingCache(tmp_path, max_bytes=0).evict()
    for _ in range(3):  # each pass looks for the first
        store.close_unused()
        assert not store.missing(first).any()
    assert store.missing(content_keys(more)).all()
    store.put(content_keys(more), torch.zeros(6, 4))
    assert torch.equal(store.get(content_keys(more)), torch.zeros(6, 4))


def test_close_unused__what_is_on_disk_or_only_in_memory_stays(tmp_path):
    on_disk, keys = filled(tmp_path)
    in_memory = EmbeddingStore("f")
    in_memory.put(keys, torch.ones(6, 4))
    in_memory.flush()
    for store in (on_disk, in_memory):
        for _ in range(3):
            store.close_unused()
        assert not store.missing(keys).any()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files")
def test_shards__keep_no_file_open(tmp_path):
    """A cache that many runs share has more shards than a process may have files open."""
    opened = len(list(Path("/proc/self/fd").iterdir()))
    store, keys = EmbeddingCache(tmp_path).store("f"), []
    for seed in range(12):
        keys.append(content_keys(batch(seed=seed)))
        store.put(keys[-1], torch.full((6, 4), float(seed)))
        store.flush()
    again = EmbeddingCache(tmp_path).store("f")
    assert torch.equal(again.get(torch.cat(keys))[::6, 0], torch.arange(12.0))
    assert len(shards(tmp_path)) == 12
    assert len(list(Path("/proc/self/fd").iterdir())) <= opened


def test_evict__clears_what_a_killed_writer_left(tmp_path):
    filled(tmp_path)
    left, in_use = (tmp_path / "v2" / "f" / name for name in (".old.tmp", ".new.tmp"))
    left.write_bytes(b"x")
    in_use.write_bytes(b"x")
    os.utime(left, (1, 1))
    EmbeddingCache(tmp_path).evict()
    assert not left.exists()
    assert in_use.exists()


def test_purge(tmp_path):
    filled(tmp_path)
    cache = EmbeddingCache(tmp_path)
    other = cache.store("g/with: odd characters")
    other.put(content_keys(batch()), torch.rand(6, 4))
    other.flush()
    (tmp_path / "mine.txt").write_text("not ours")
    size = cache.size()
    freed = cache.purge("f")
    assert 0 < freed < size
    assert cache.size() == size - freed
    assert cache.purge() == size - freed
    assert [path.name for path in tmp_path.rglob("*")] == ["mine.txt"]
    assert EmbeddingCache(tmp_path / "nowhere").purge() == 0


def test_default_cache_folder__chosen_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_FAILURES_CACHE", str(tmp_path / "here"))
    assert default_cache_folder() == tmp_path / "here"
    assert EmbeddingCache().folder == tmp_path / "here"


def test_default_cache_folder__of_the_system(monkeypatch, tmp_path):
    monkeypatch.delenv("LIGHTNING_FAILURES_CACHE", raising=False)
    assert default_cache_folder().name == "lightning_failures"
    if sys.platform == "linux":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert default_cache_folder() == tmp_path / ".cache" / "lightning_failures"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert default_cache_folder() == tmp_path / "xdg" / "lightning_failures"
    assert EmbeddingCache(tmp_path / "unused").size() == 0
    assert not (tmp_path / "unused").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a user always has a home")
def test_default_cache_folder__user_without_a_home(monkeypatch, tmp_path):
    import pwd

    for name in ("LIGHTNING_FAILURES_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, "unset, and restored after the test")
        monkeypatch.delenv(name)

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = default_cache_folder()
    assert found == tmp_path / f"lightning_failures-{os.getuid()}" / ".cache" / "lightning_failures"
    assert [path.name for path in tmp_path.iterdir()] == [f"lightning_failures-{os.getuid()}"]
    assert Path(os.environ["HOME"]).stat().st_mode & 0o077 == 0


def test_beside__vectors_of_another_length_under_the_same_encoder(tmp_path):
    cache = EmbeddingCache(tmp_path)
    store, keys = filled(tmp_path)
    maps = store.derived_store("maps 8x8")
    assert maps.missing(keys).all()
    maps.put(keys, torch.ones(len(keys), 66))
    maps.flush()
    again = cache.store("f").derived_store("maps 8x8")
    assert again.get(keys).shape == (len(keys), 66)
    assert cache.store("f").get(keys).shape == (len(keys), 4)
    assert cache.store("f").derived_store("maps 4x4").missing(keys).all()
    assert cache.store("g").derived_store("maps 8x8").missing(keys).all()


@pytest.mark.parametrize("fingerprint", ["f", "no/plain name" * 9])
def test_purge__of_an_encoder_takes_what_lies_beside(tmp_path, fingerprint):
    cache = EmbeddingCache(tmp_path)
    keys = content_keys(batch())
    for owner in (fingerprint, "other", fingerprint + "-other"):
        for store in (cache.store(owner), cache.store(owner).derived_store("maps")):
            store.put(keys, torch.ones(len(keys), 3))
            store.flush()
    assert len(shards(tmp_path)) == 6
    assert cache.purge(fingerprint) > 0
    assert len(shards(tmp_path)) == 4
    assert not cache.store("other").derived_store("maps").missing(keys).any()


def test_beside__in_memory():
    store = EmbeddingStore("f")
    keys = content_keys(batch())
    beside = store.derived_store("maps")
    beside.put(keys, torch.ones(len(keys), 3))
    assert not beside.missing(keys).any()


def test_put__an_embedding_that_is_not_finite_stays_missing(tmp_path):
    store, keys = EmbeddingCache(tmp_path).store("f"), content_keys(batch(4))
    store.put(keys, torch.tensor([[1.0, 2.0], [float("nan"), 0.0], [float("inf"), 1.0], [3.0, 4.0]]))
    assert store.missing(keys).tolist() == [False, True, True, False]
    store.flush()
    again = EmbeddingCache(tmp_path).store("f")
    assert again.missing(keys).tolist() == [False, True, True, False]
    again.put(keys, torch.ones(4, 2))
    assert again.get(keys).tolist() == [[1.0, 2.0], [1.0, 1.0], [1.0, 1.0], [3.0, 4.0]]


def test_embed__an_image_that_is_not_finite_is_not_shown_to_the_encoder():
    encoder, images = CountingEncoder(), batch(3)
    images[1, 0, 0, 0] = float("nan")
    store = EmbeddingStore(encoder.fingerprint)
    keys = embed(encoder, store, images)
    assert encoder.encoded == 2
    assert store.missing(keys).tolist() == [False, True, False]


# ------------------------------------------------------------------------------------------------------- joining shards


def filled_by_parts(folder, parts, *, size=4, large=False):
    """Flush after every part, and return the store, all keys and all embeddings."""
    store, images = EmbeddingCache(folder).store("f"), batch(parts * size)
    keys, values = content_keys(images), images.flatten(1)[:, :6]
    values[::5] *= 1e6 if large else 1.0  # these need float32
    for some, rows in zip(keys.split(size), values.split(size), strict=True):
        store.put(some, rows)
        store.flush()
    return store, keys, store.get(keys)


@pytest.mark.parametrize("large", [False, True])
def test_join__many_small_shards_become_few(tmp_path, large):
    store, keys, values = filled_by_parts(tmp_path, 40, large=large)
    assert len(shards(tmp_path)) < MAX_SMALL_SHARDS * (2 if large else 1)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    for each in (store, EmbeddingCache(tmp_path).store("f")):
        assert not each.missing(keys).any()
        assert each.missing(keys + 1).all()
        assert torch.equal(each.get(keys[order]), values[order])
    assert not list(tmp_path.rglob("*.tmp"))


def test_join__at_the_first_flush_of_a_cache_of_before(tmp_path):
    folders = [tmp_path / str(part) for part in range(4)]
    images = batch(4 * 40)
    keys, values = content_keys(images), images.flatten(1)[:, :6]
    for folder, some, rows in zip(folders, keys.split(40), values.split(40), strict=True):
        store = EmbeddingCache(folder).store("f")
        for few, few_rows in zip(some.split(4), rows.split(4), strict=True):
            store.put(few, few_rows)
            store.flush()
    for path in [path for folder in folders[1:] for path in shards(folder)]:
        path.rename(folders[0] / "v2" / "f" / path.name)
    assert len(shards(folders[0])) == 40
    store = EmbeddingCache(folders[0]).store("f")
    assert len(shards(folders[0])) == 40  # opening writes nothing
    store.flush()
    assert len(shards(folders[0])) == 1
    for each in (store, EmbeddingCache(folders[0]).store("f")):
        assert torch.equal(each.get(keys), values.half().float())


def test_join__killed_between_writing_and_removing(tmp_path):
    _, keys, values = filled_by_parts(tmp_path, MAX_SMALL_SHARDS - 1)
    small = {path: path.read_bytes() for path in shards(tmp_path)}
    store = EmbeddingCache(tmp_path).store("f")
    more = content_keys(batch(4, seed=9))
    store.put(more, torch.ones(4, 6))
    store.flush()
    assert len(shards(tmp_path)) == 1
    for path, content in small.items():
        path.write_bytes(content)
    again = EmbeddingCache(tmp_path).store("f")
    assert torch.equal(again.get(keys), values)
    again.flush()
    assert len(shards(tmp_path)) == 1
    for each in (again, EmbeddingCache(tmp_path).store("f")):
        assert torch.equal(each.get(torch.cat([keys, more])), torch.cat([values, torch.ones(4, 6)]))


def test_join__an_open_store_of_another_process_keeps_its_embeddings(tmp_path):
    _, keys, values = filled_by_parts(tmp_path, MAX_SMALL_SHARDS - 1)
    reader, writer = (EmbeddingCache(tmp_path).store("f") for _ in range(2))
    more = content_keys(batch(4, seed=9))
    writer.put(more, torch.ones(4, 6))
    writer.flush()
    assert len(shards(tmp_path)) == 1
    assert torch.equal(reader.get(keys), values)
    assert torch.equal(reader.get(more), torch.ones(4, 6))  # looks again
    assert torch.equal(reader.get(keys), values)


def test_join__one_process_at_a_time(tmp_path):
    _, keys, values = filled_by_parts(tmp_path, MAX_SMALL_SHARDS - 1)
    lock = tmp_path / "v2" / "f" / ".joining.tmp"
    lock.touch()  # another process is at it
    for seed in (9, 10):
        store = EmbeddingCache(tmp_path).store("f")
        store.put(content_keys(batch(4, seed=seed)), torch.ones(4, 6))
        store.flush()
        assert len(shards(tmp_path)) == (MAX_SMALL_SHARDS if seed == 9 else 1)
        assert torch.equal(store.get(keys), values)
        if seed == 9:
            os.utime(lock, (1, 1))  # it was killed days ago
            EmbeddingCache(tmp_path).evict()


def test_join__a_full_disk_leaves_the_small_shards(tmp_path):
    resource = pytest.importorskip("resource")
    _, keys, values = filled_by_parts(tmp_path, MAX_SMALL_SHARDS - 1)
    more = content_keys(batch(4, seed=9))
    store = EmbeddingCache(tmp_path).store("f")
    store.put(more, torch.ones(4, 6))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (shards(tmp_path)[0].stat().st_size, hard))  # enough for one of them
    try:
        store.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(shards(tmp_path)) == MAX_SMALL_SHARDS
    assert not list(tmp_path.rglob("*.tmp"))
    for each in (store, EmbeddingCache(tmp_path).store("f")):
        assert torch.equal(each.get(keys), values)


def test_join__keeps_the_size_limit_and_large_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_failures.encoders.cache.store.SMALL_SHARD", 4 * 6 * 2 + 1)
    _, keys, values = filled_by_parts(tmp_path, MAX_SMALL_SHARDS)
    (large,) = shards(tmp_path)
    store, _, _ = filled_by_parts(tmp_path, 2 * MAX_SMALL_SHARDS)  # the second half is new
    assert large in shards(tmp_path)  # it is not small, and stays
    assert torch.equal(store.get(keys), values)
    assert len(shards(tmp_path)) == 2


def test_missing__does_not_look_at_the_files_of_the_shards(tmp_path, monkeypatch):
    """Keys are sought in one index, whose cost does not grow with the number of shards."""
    monkeypatch.setattr("lightning_failures.encoders.cache.store.MAX_SMALL_SHARDS", 10**6)
    store, keys, _ = filled_by_parts(tmp_path, 40)
    for path in shards(tmp_path):
        path.unlink()
    assert not store.missing(keys).any()


def join_in_a_process(folder, start):
    torch.set_num_threads(1)
    start.wait(timeout=60)
    for part in range(40):
        store = EmbeddingCache(folder).store("f")
        images = batch(4, seed=500 + part)
        store.put(content_keys(images), images.flatten(1)[:, :6])
        store.flush()


@pytest.mark.slow
def test_join__readers_meanwhile_miss_nothing(tmp_path):
    _, keys, values = filled_by_parts(tmp_path, MAX_SMALL_SHARDS - 1)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    processes = [context.Process(target=join_in_a_process, args=(tmp_path, start)) for _ in range(2)]
    for process in processes:
        process.start()
    start.wait(timeout=60)
    reads = 0
    while any(process.is_alive() for process in processes):
        assert torch.equal(EmbeddingCache(tmp_path).store("f").get(keys), values)
        reads += 1
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert reads > 3
    store = EmbeddingCache(tmp_path).store("f")
    for part in range(40):
        images = batch(4, seed=500 + part)
        assert torch.equal(store.get(content_keys(images)), images.flatten(1)[:, :6].half().float())
    assert len(shards(tmp_path)) < 3 * MAX_SMALL_SHARDS
