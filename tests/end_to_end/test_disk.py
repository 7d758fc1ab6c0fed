"""Disks that damage files, refuse writes, fill up or lose writes: no wrong embedding, dead run or incomplete file."""

from __future__ import annotations

import ast
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_failures.core.atomic import replacing
from lightning_failures.core.safetensors_io import DamagedShardError
from lightning_failures.encoders.cache import shard_file as shards
from lightning_failures.encoders.cache.shard_file import Shard, read_shard, write_shard
from lightning_failures.encoders.cache.store import EmbeddingCache, content_keys
from tests.helpers.toy import OracleClassifier, callback, loader, trainer
from tests.processes import disk_fit
from tests.processes.launch import fork

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_failures"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*already been started.*"),
]


def in_a_process(*command: object, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run a command in a process group of its own, and kill the group afterwards."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


# ------------------------------------------------------------------------------------------------------- damaged caches


def small_shard(folder, fingerprint="f"):
    rng = np.random.default_rng(0)
    shard = Shard.of(rng.integers(-9, 9, (3, 2)), rng.normal(size=(3, 2)).astype(np.float16))
    return shard, write_shard(shard, folder, fingerprint)


def right_or_refused(path, expected) -> bool:
    """Return whether a file is refused; assert that an accepted file holds exactly what was written."""
    try:
        read = read_shard(path, "f")
    except DamagedShardError:
        return True
    assert np.array_equal(read.keys, expected.keys)
    assert np.array_equal(read.places, expected.places)
    assert np.array_equal(read.embeddings, expected.embeddings)
    return False


def readable_by_others():
    """Return whether other users may import this copy of the package."""
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (ROOT, *ROOT.parents))


@pytest.mark.slow
def test_shard__every_bit_flipped(tmp_path):
    """One bit at a time: header length, header, metadata, keys, positions, embeddings."""
    shard, path = small_shard(tmp_path)
    whole = path.read_bytes()
    data = 8 + int.from_bytes(whole[:8], "little")
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            refused = right_or_refused(path, shard)
            assert refused or 8 <= position < data  # of the header, names that are not read may change


def test_shard__every_length(tmp_path):
    shard, path = small_shard(tmp_path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert right_or_refused(path, shard)
    for more in (b"\0", b"\0" * 12, whole):
        path.write_bytes(whole + more)
        assert right_or_refused(path, shard)
    path.write_bytes(whole)
    assert not right_or_refused(path, shard)


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_shard__of_another_encoder_version_or_kind(tmp_path, monkeypatch):
    shard, path = small_shard(tmp_path)
    whole = path.read_bytes()
    other = small_shard(tmp_path / "other", "another encoder")[1].read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_FORMAT", "lightning_failures embeddings 3")
        later = small_shard(tmp_path / "later")[1].read_bytes()
    code = pickle.dumps(Payload(tmp_path / "ran"))
    assert later != whole
    for content in (other, later, code, b"\x80" * 7 + b"\0" + whole[8:], bytes(len(whole))):
        path.write_bytes(content)
        assert right_or_refused(path, shard)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(DamagedShardError):
        read_shard(small_shard(tmp_path)[1], "another encoder")


def test_shard__a_header_that_claims_the_world_costs_nothing(tmp_path):
    path = tmp_path / "x.safetensors"
    for n in (2**20, 2**40, 2**60, 2**400, -1, 1.5, "3", None, True):
        parts = {"keys": ("I64", [2, n]), "places": ("I32", [n]), "embeddings": ("F16", [n, 2])}
        header = {
            name: {"dtype": kind, "shape": shape, "data_offsets": [0, 8]} for name, (kind, shape) in parts.items()
        }
        text = json.dumps(header | {"__metadata__": {"checksum": "0" * 32}}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(100))
        with pytest.raises(DamagedShardError):
            read_shard(path, "f")


def test_store__a_later_layout_is_left_alone(tmp_path):
    folder = tmp_path / "v3" / "f"
    folder.mkdir(parents=True)
    (folder / "x.safetensors").write_bytes(b"of a later version")
    cache = EmbeddingCache(tmp_path)
    store, keys = cache.store("f"), content_keys(torch.rand(2, 3, 4, 4))
    assert store.missing(keys).all()
    store.put(keys, torch.ones(2, 4))
    store.flush()
    cache.purge()
    assert (folder / "x.safetensors").read_bytes() == b"of a later version"


def validate(cache, root):
    """Validate with the callback; return the findings, the number of embedded images and the warnings."""
    failures = callback(cache_folder=cache, permutations=9, pictures=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(root, failures).validate(OracleClassifier(), loader(), verbose=False)
    warned = [str(warning.message) for warning in caught if "embedding cache" in str(warning.message)]
    return disk_fit.findings(failures.last_report), failures.encoder.embedded, warned


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trainer__damaged_caches_give_the_report_of_an_empty_one(tmp_path):
    cache = tmp_path / "cache"
    expected, embedded, warned = validate(cache, tmp_path)
    assert (embedded, warned) == (160, [])
    (path,) = cache.rglob("*.safetensors")
    whole = path.read_bytes()
    half = len(whole) // 2
    contents = [whole[:half], b"", whole + b"x", whole[:half] + b"\xff" + whole[half + 1 :], bytes(len(whole))]
    for content in contents:
        assert content != whole
        path.write_bytes(content)
        report, embedded, warned = validate(cache, tmp_path)
        assert report == expected
        assert embedded == 160  # everything again
        assert len(warned) == 1
        assert "embedded again" in warned[0]
        report, embedded, warned = validate(cache, tmp_path)  # repaired
        assert (report, embedded, warned) == (expected, 0, [])


TRUNCATES = """
import os, sys, warnings
import torch
from pathlib import Path
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.errors import CacheError

folder = sys.argv[1]
torch.set_num_threads(1)
keys = torch.arange(4096).reshape(-1, 2)
store = EmbeddingCache(folder).store("f")
store.put(keys, torch.rand(2048, 512))
store.flush()
(path,) = Path(folder).rglob("*.safetensors")
with path.open("r+b") as file:
    file.truncate(4096)
child = os.fork()
if child == 0:
    store._shards[0].embeddings.sum()  # past the end of the file: show what would happen
    os._exit(0)
print(os.WTERMSIG(os.waitpid(child, 0)[1]))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        store.get(keys)
    except CacheError:
        print(len(caught), "became shorter" in str(caught[0].message), bool(store.missing(keys).all()))
    store.put(keys, torch.ones(2048, 512))
    print(bool((store.get(keys) == 1).all()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not truncate what is mapped")
def test_store__a_shard_cut_short_by_another_process_is_no_end_of_this_one(tmp_path):
    done = in_a_process(sys.executable, "-c", TRUNCATES, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(int(signal.SIGBUS)), "1", "True", "True", "True"]


# ------------------------------------------------------------------------------------------- full, read-only, forbidden


def can_mount() -> list[str] | None:
    """Return the words before a command that mounts file systems; None if mounting is not permitted."""
    for words in (["unshare", "-m"], ["unshare", "-rm"]):
        try:
            trial = subprocess.run([*words, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if trial.returncode == 0:
            return words
    return None


def good_enough(run, good) -> None:
    """Assert a complete training with the same findings and one warning."""
    assert run["epochs"] == disk_fit.EPOCHS
    assert run["report"] == good["report"]
    assert len(run["warnings"]) == 1, run["warnings"]


@pytest.mark.slow
def test_trainer__full_and_read_only_disks(tmp_path):
    words = can_mount()
    if words is None:
        pytest.skip("mounting is not permitted here (unshare)")
    done = in_a_process(*words, sys.executable, "-m", "tests.processes.disk_fit", tmp_path, "full")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    good = found.pop("good")
    assert good["report"]["examples"] == 160
    assert good["warnings"] == []
    assert found.pop("halves") == []
    assert found.pop("steered") == {"examples": [96] * 3, "warnings": []}
    steered = found.pop("steered, full")
    assert steered["examples"] == [96] * 3
    assert any("GeneratorError" in text for text in steered["warnings"])
    assert all("FileWriter" in text or "skips their decision" in text for text in steered["warnings"])
    errors = dict.fromkeys(("FileWriter", "CSVWriter", "TensorBoardWriter"), "OSError") | {"Ledger": "GeneratorError"}
    assert found.pop("sinks") == errors | {"rows of the ledger": True}
    for scenario, where in {
        "full cache": "embedding cache",
        "read-only cache": "embedding cache",
        "full log folder": "FileWriter",
        "log folder that fills up": "FileWriter",
        "read-only log folder": "FileWriter",
    }.items():
        run = found.pop(scenario)
        good_enough(run, good)
        assert where in run["warnings"][0]
    assert found == {}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no such rights")
@pytest.mark.skipif(not readable_by_others(), reason="this copy of the package is closed to other users")
def test_trainer__folders_of_another_user(tmp_path):
    created = [folder for folder in (tmp_path, *tmp_path.parents) if Path(tempfile.gettempdir()) in folder.parents]
    for folder in created:  # pytest creates them for root alone, one more in each of several processes
        folder.chmod(0o755)
    (done,) = fork("disk_fit", tmp_path, "denied", timeout=240)
    assert done.status == 0, done.said[-3000:]
    found = json.loads(done.said.splitlines()[-1])
    run = found["denied"]
    assert ["embedding cache" in text for text in run["warnings"]] == [True, False]  # one for each folder
    assert all("Permission denied" in text for text in run["warnings"])
    good_enough(run | {"warnings": run["warnings"][:1]}, found["good"])


def test_halves__can_find_some(tmp_path):
    (tmp_path / "report.json").write_text('{"examples": ')
    (tmp_path / "x.png").write_bytes(b"\x89PNG")
    (tmp_path / ".writing-1.tmp").write_text("x")
    (tmp_path / "report.md").write_text("")
    assert len(disk_fit.halves(tmp_path)) == 4


# ------------------------------------------------------------------------------------------------- compiled inner loops


def damages(path):
    """Return damaged versions of a file of machine code."""
    whole = path.read_bytes()
    for position in (0, 3, 30, len(whole) // 3, len(whole) // 2, len(whole) - 40, len(whole) - 1):
        yield whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :]
    yield from (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], bytes(len(whole)), b"not a pickle")


@pytest.mark.slow
def test_compiled__damaged_machine_code_is_made_anew(tmp_path, monkeypatch):
    import numba

    from lightning_failures.stats.kernels import compiled, products

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    x = np.arange(12, dtype=np.float32).reshape(4, 3)

    def misses() -> int:
        """Act as a new process: compile or load the function, run it, and return which of the two it was."""
        function = compiled(products.scalar_products.py_func)
        out = np.zeros((4, 4), np.float32)
        function(x, out)
        assert np.array_equal(out, x @ x.T)
        return sum(function.stats.cache_misses.values())

    assert (misses(), misses()) == (1, 0)
    (index,), (code,) = tmp_path.rglob("*.nbi"), tmp_path.rglob("*.nbc")
    for path in (index, code):
        whole = path.read_bytes()
        for content in [*damages(path), pickle.dumps(Payload(tmp_path / "ran"))]:
            path.write_bytes(content)
            assert misses() == 1 or (path == index and content[60:] == whole[60:])  # only the version name is damaged
            assert misses() == 0  # repaired
    path.unlink()
    path.mkdir()  # behaves like a disk that fails
    assert (misses(), misses()) == (1, 1)
    assert not (tmp_path / "ran").exists()


# -------------------------------------------------------------------------------------------------------- atomic writes

WRITERS = {
    "write_text", "write_bytes", "save", "save_file", "save_model", "save_pretrained", "save_checkpoint", "savefig",
    "tofile", "savez", "savez_compressed", "savetxt", "dump", "to_csv", "truncate", "mkstemp", "NamedTemporaryFile",
    "copytree", "copy2", "copyfile", "move", "touch", "memmap", "open_memmap", "fdopen", "symlink_to",
}  # fmt: skip

ALLOWED = {
    ("core/atomic.py", "temporary.open"): "the one way to write a file: a temporary name, fsync, then its own name",
    ("steering/rollback.py", "torch.save"): "into what atomic.replacing has opened",
    ("steering/rollback.py", "save"): "the function around it",
    ("steering/forks/callbacks.py", "trainer.save_checkpoint"): "Lightning's, which moves a whole file into place",
    ("steering/checkpoint.py", "trainer.save_checkpoint"): "Lightning's, as above",
    ("steering/controller.py", "save_checkpoint"): "the function around it",
    ("steering/last_layer.py", "torch.save"): "into what atomic.replacing has opened",
    ("trainer/ranks.py", "_Pickler(buffer).dump"): "into memory, for another process of the run",
    ("regression/pin.py", "save"): "bytes, as above",
    ("sparse/layer.py", "save"): "bytes, as above",
    ("cli/pins.py", "pinned.save"): "of Pin, which writes atomically",
    ("writers/labelling.py", "to_csv"): "text, for write_atomically",
    ("directions/result.py", "save"): "safetensors.torch.save gives bytes, for write_atomically",
    ("interventions/synthesis/ledger.py", "path.open"): "append-only: a line is synced, and a torn one is no line",
    ("interventions/synthesis/ledger.py", "os.truncate"): "takes a torn last line away",
    ("interventions/synthesis/ledger.py", "Image.save"): "into memory",
    ("report/image_encoding.py", "_pillow(image).save"): "into memory",
    ("writers/projector.py", "np.savetxt"): "into memory",
    ("recipes/parts/files.py", "Image.save"): "into memory",
    ("sparse/softmax.py", "np.memmap"): "a temporary file without a name, whose space is reserved first",
    ("data/example_table.py", "save"): "bytes, as above",
    ("report/diary_storage.py", "save"): "bytes, as above",
    ("writers/files.py", "saved.save"): "of FailureDirections and ExampleTable, which write atomically",
}


def writes(source: str) -> set[str]:
    """Return the calls of a source that may write a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        name = called.rsplit(".", 1)[-1]
        modes = [
            value.value
            for value in (*node.args, *(keyword.value for keyword in node.keywords))
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and set(value.value) <= set("rwaxbt+")
        ]
        if name in WRITERS or (name == "open" and any(set(mode) & set("wax+") for mode in modes)):
            found.add("Image.save" if called.startswith("Image.") else called)
    return found


def test_writes__are_all_atomic():
    found = {
        (str(path.relative_to(PACKAGE)), call)
        for path in sorted(PACKAGE.rglob("*.py"))
        for call in writes(path.read_text())
    }
    assert {pair for pair in found if pair not in ALLOWED} == set(), "write with atomic.write_atomically or replacing"
    assert {pair for pair in ALLOWED if pair not in found and (PACKAGE / pair[0]).exists()} == set(), "no longer there"


def test_writes__this_test_can_fail():
    assert writes("path.open('wb').write(b'')\nopen(p, mode='a')\nopen(p)\npath.write_text('')") == {
        "path.open",
        "open",
        "path.write_text",
    }


def test_replacing__reaches_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """After a crash of the machine the old file or the new one exists, never an empty one."""
    events, sync, replace = [], os.fsync, Path.replace

    def synced(handle):
        events.append(("fsync", os.fstat(handle).st_size))
        sync(handle)

    def replaced(self, target):
        events.append(("replace", target.name))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    with replacing(tmp_path / "name") as file:
        file.write(b"12345")
    assert events == [("fsync", 5), ("replace", "name")]


def test_replacing__an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "name").write_bytes(b"old")

    def fail():
        with replacing(tmp_path / "name") as file:
            file.write(b"new" * 10_000)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("name", b"old")]
