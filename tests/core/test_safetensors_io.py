import json

import numpy as np
import pytest
from safetensors import safe_open

from lightning_failures.core.safetensors_io import (
    DamagedShardError,
    damage_reported,
    little_endian,
    read_array,
    read_header,
    write_arrays,
)

ARRAYS = {
    "a": np.arange(6, dtype=np.int64).reshape(2, 3),
    "b": np.array([1.5, -2.0], dtype=np.float16),
    "empty": np.empty((0, 4), dtype=np.float32),
    "c": np.arange(3, dtype=np.int32),
}


@pytest.mark.parametrize("alignment", [8, 64])
def test_write_arrays__comes_back_and_is_safetensors(tmp_path, alignment):
    path = tmp_path / "folder" / "file"
    write_arrays(path, ARRAYS, {"made": "by us"}, alignment=alignment)
    with path.open("rb") as file:
        header = read_header(file)
        assert header.metadata == {"made": "by us"}
        assert header.file_size == path.stat().st_size
        assert header.entries["a"].start % alignment == 0
        for name in reversed(ARRAYS):  # in any order
            read = read_array(file, header.entries[name])
            assert read.dtype == ARRAYS[name].dtype
            assert np.array_equal(read, ARRAYS[name])
            assert read.flags.writeable
    with safe_open(str(path), framework="np") as file:
        assert file.metadata() == {"made": "by us"}
        assert np.array_equal(file.get_tensor("a"), ARRAYS["a"])


def test_little_endian__contiguous_and_swapped():
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    stored = little_endian(array)
    assert stored.dtype == np.dtype("<i4")
    assert stored.flags.c_contiguous
    assert np.array_equal(stored, array)
    assert little_endian(stored) is stored


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_offsets": [0, 40]}, "wrong position of a"),
        ({"shape": [2, -3]}, "wrong shape of a"),
        ({"shape": [2, 1.5]}, "wrong shape of a"),
        ({"shape": [2**60, 2**60], "data_offsets": [0, 2**123]}, "wrong size"),
        ({"dtype": "BF16"}, "BF16"),
        ({"shape": None}, "NoneType"),
    ],
)
def test_read_header__disagreement(tmp_path, changes, message):
    entry = {"dtype": "I64", "shape": [2, 3], "data_offsets": [0, 48]} | changes
    text = json.dumps({"a": entry, "__metadata__": {}}).encode()
    path = tmp_path / "file"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(48))
    with path.open("rb") as file, pytest.raises(DamagedShardError, match=message), damage_reported():
        read_header(file)


def test_read_header__too_long_or_no_json(tmp_path):
    path = tmp_path / "file"
    for content in (b"", b"\x80" * 7 + b"\0", (3).to_bytes(8, "little") + b"{]}"):
        path.write_bytes(content)
        with path.open("rb") as file, pytest.raises(DamagedShardError), damage_reported():
            read_header(file)


def test_read_array__file_cut_short_after_its_header(tmp_path):
    path = tmp_path / "file"
    write_arrays(path, ARRAYS, {})
    with path.open("r+b") as file:
        header = read_header(file)
        file.truncate(header.entries["c"].start + 5)
        with pytest.raises(ValueError, match="wrong size"):
            read_array(file, header.entries["c"])


def test_damage_reported__errors_of_the_disk_are_passed_on():
    with pytest.raises(OSError, match="no such disk"), damage_reported():
        raise OSError("no such disk")
    with pytest.raises(DamagedShardError, match="KeyError"), damage_reported():
        raise KeyError
