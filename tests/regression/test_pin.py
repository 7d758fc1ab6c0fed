"""The file of a pin: what it says about images, and which files are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lightning_failures.errors import DataError
from lightning_failures.regression import Pin, PinnedDirection, load_pins
from lightning_failures.regression.pin import _checksum
from lightning_failures.trees.growing import NodeSplit
from tests.regression.pins import pin

RULE = (NodeSplit(3, 0.5, above=True), NodeSplit(0, 0.1, above=False))


@pytest.mark.parametrize("changes", [{}, {"direction": None, "rule": RULE}, {"others": 0, "caption": None}])
def test_pin__is_read_as_it_was_written(tmp_path, changes):
    written = pin(**changes)
    written.save(tmp_path / "a.pin")
    read = Pin.load(tmp_path / "a.pin")
    for name in ("name", "class_name", "encoder", "slice", "rest", "level_of", "rule", "caption", "level", "source"):
        assert getattr(read, name) == getattr(written, name)
    for name in ("ids", "digests", "known"):
        assert torch.equal(getattr(read, name), getattr(written, name))
    rows = np.random.default_rng(0).normal(size=(30, 2 if read.direction else 4))
    assert read.contains(rows).tolist() == written.contains(rows).tolist()
    assert (tmp_path / "a.pin").stat().st_size < 4096


def test_pin__threshold_and_standardisation_decide():
    weight, mean, std = torch.tensor([0.6, 0.8]), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.5])
    direction = PinnedDirection(weight, mean, std, threshold=0.3)
    x = np.random.default_rng(1).normal(size=(50, 2)) * 3
    phi = (x - [1.0, 2.0]) / [2.0, 0.5]
    phi /= np.linalg.norm(phi, axis=1, keepdims=True)
    assert direction.contains(x).tolist() == (phi @ [0.6, 0.8] < 0.3).tolist()


def test_pin__a_rule_holds_where_all_its_conditions_do():
    rows = [[0.1, 0, 0, 0.6], [0.1, 0, 0, 0.5], [0.2, 0, 0, 0.6], [float("nan"), 0, 0, 0.6]]
    assert pin(direction=None, rule=RULE).contains(rows).tolist() == [True, False, False, False]


def test_pin__embeddings_of_another_encoder_are_refused():
    with pytest.raises(DataError, match=r"needs 2 dimensions, got 5.*another encoder"):
        pin().contains(np.zeros((3, 5)))
    with pytest.raises(DataError, match="at least 4 dimensions, got 2"):
        pin(direction=None, rule=RULE).contains(np.zeros((3, 2)))


def rewritten(path, *, metadata=None, checksum=True, **tensors) -> None:
    """Write a pin with other contents."""
    with safe_open(path, framework="pt") as file:
        content = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118 - not a mapping
        about = file.metadata() | (metadata or {})
    if checksum:
        about["checksum"] = _checksum(about["pin"], content)
    save_file(content, path, about)


def test_load__a_pin_from_the_future_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "a.pin"
    pin().save(path)
    rewritten(path, metadata={"format": "lightning-failures pin 2"})
    with pytest.raises(DataError, match=r"later version.*Upgrade lightning_failures"):
        Pin.load(path)


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "other", "text", "nonsense", "shape", "rate"])
def test_load__damaged_files_are_refused_with_the_remedy(tmp_path, damage):
    path = tmp_path / "a.pin"
    pin().save(path)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-9])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif damage == "other":
        save_file({"x": torch.zeros(2)}, path)
    elif damage == "text":
        path.write_text("nine")
    elif damage == "nonsense":
        rewritten(path, metadata={"pin": "{}"})
    elif damage == "shape":
        rewritten(path, mean=torch.zeros(3))
    elif damage == "rate":
        with safe_open(path, framework="pt") as file:
            stored = json.loads(file.metadata()["pin"]) | {"slice": [4, 9, 4.0]}
        rewritten(path, metadata={"pin": json.dumps(stored)})
    with pytest.raises(DataError, match=r"a\.pin is no pin, or is damaged .*lightning-failures pin RUN"):
        Pin.load(path)


def test_load_pins__of_files_and_folders(tmp_path):
    for name in ("b", "a"):
        pin(name=name).save(tmp_path / f"{name}.pin")
    (tmp_path / "notes.txt").write_text("not a pin")
    assert [one.name for one in load_pins(tmp_path)] == ["a", "b"]
    assert [one.name for one in load_pins([tmp_path / "b.pin", tmp_path])] == ["b", "a"]
    assert load_pins([]) == ()


def test_load_pins__missing_files_and_empty_folders_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"x\.pin does not exist\. Write a pin"):
        load_pins(tmp_path / "x.pin")
    with pytest.raises(DataError, match=r"holds no .*pin files"):
        load_pins([tmp_path])
