"""The file of one block of a pool."""

from __future__ import annotations

import base64
import dataclasses

import pytest
import torch
from safetensors import safe_open

from lightning_failures.core.safetensors_io import DamagedShardError
from lightning_failures.pools import (
    PoolShard,
    read_pool_shard,
    score_shard,
    write_pool_shard,
)
from lightning_failures.pools.shards import POOL_UNLABELLED, directions_digest
from tests.pools.synthetic import fitted, rows


def same(one: PoolShard, other: PoolShard) -> bool:
    return one.directions == other.directions and all(
        a is b is None or torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        for a, b in zip(list(vars(one).values())[:5], list(vars(other).values())[:5], strict=True)
    )


@pytest.mark.parametrize("with_embeddings", [True, False])
def test_shard__read_back(tmp_path, with_embeddings):
    shard = score_shard(rows(9), fitted())
    if not with_embeddings:
        shard = dataclasses.replace(shard, embeddings=None)
    write_pool_shard(shard, tmp_path / "a", pool="p")
    assert same(read_pool_shard(tmp_path / "a", range(9), pool="p"), shard)
    assert read_pool_shard(tmp_path / "a", range(9), pool="p", embeddings=False).embeddings is None
    write_pool_shard(shard, tmp_path / "b", pool="p")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("left_out", [[1, 2], [0], list(range(300))])
def test_shard__without_some_examples_of_its_block(tmp_path, left_out):
    """The first reasons are stored; so is every id."""
    block = range(300)
    kept = [i for i in block if i not in left_out]
    shard = dataclasses.replace(rows(len(kept)), ids=torch.tensor(kept, dtype=torch.int64))
    shard = dataclasses.replace(score_shard(shard, fitted()), left_out={i: f"reason {i}" for i in left_out})
    write_pool_shard(shard, tmp_path / "a", pool="p")
    for embeddings in (True, False):
        read = read_pool_shard(tmp_path / "a", block, pool="p", embeddings=embeddings)
        assert read.ids.tolist() == kept
        assert read.left_out == {i: f"reason {i}" if k < 100 else "" for k, i in enumerate(left_out)}
    with pytest.raises(DamagedShardError, match="other examples"):
        read_pool_shard(tmp_path / "a", range(301), pool="p")
    whole = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(whole.replace(b"reason", b"season"))
    with pytest.raises(DamagedShardError, match="checksum"):
        read_pool_shard(tmp_path / "a", block, pool="p")


def test_shard__is_a_safetensors_file(tmp_path):
    shard = rows(5)
    write_pool_shard(shard, tmp_path / "a", pool="p")
    with safe_open(str(tmp_path / "a"), framework="pt") as file:
        assert torch.equal(file.get_tensor("embeddings"), shard.embeddings)
        assert file.get_tensor("ids").tolist() == [0, 1, 2, 3, 4]


# files of release 0.1.0, in base64
WRITTEN_BEFORE = {
    "bare": (
        "0AEAAAAAAAB7ImlkcyI6IHsiZHR5cGUiOiAiSTY0IiwgInNoYXBlIjogWzNdLCAiZGF0YV9vZmZzZXRzIjogWzAsIDI0XX0sICJsYWJlbHMiOi"
        "B7ImR0eXBlIjogIkk2NCIsICJzaGFwZSI6IFszXSwgImRhdGFfb2Zmc2V0cyI6IFsyNCwgNDhdfSwgImtleXMiOiB7ImR0eXBlIjogIkk2NCIs"
        "ICJzaGFwZSI6IFszLCAyXSwgImRhdGFfb2Zmc2V0cyI6IFs0OCwgOTZdfSwgIl9fbWV0YWRhdGFfXyI6IHsiZm9ybWF0IjogImxpZ2h0bmluZ1"
        "9mYWlsdXJlcyBwb29sIHNoYXJkIDEiLCAicG9vbCI6ICJiZWVmIiwgImRpcmVjdGlvbnMiOiAiIiwgImNoZWNrc3VtcyI6ICJ7XCJpZHNcIjog"
        "XCJjM2VjZjZjYWRmZDgzNzk0NTY3ZjUwM2M3MTZlZWU0ZFwiLCBcImxhYmVsc1wiOiBcIjljMjE2MThjZTE3ZTlhMjVjZDhiMWIzOWE2M2FhMG"
        "I1XCIsIFwia2V5c1wiOiBcIjk3OGQ5MzM0MjBiZTQ0MGRkM2EzMTM0NDRjZDc1NjcwXCJ9In19ICAgIAQAAAAAAAAABQAAAAAAAAAGAAAAAAAA"
        "AAEAAAAAAAAA//////////8AAAAAAAAAAAUAAAAAAAAA//////////8DAAAAAAAAAAAAAAAAAABABQAAAAAAAAD5/////////w=="
    ),
    "half": (
        "UAIAAAAAAAB7ImlkcyI6IHsiZHR5cGUiOiAiSTY0IiwgInNoYXBlIjogWzNdLCAiZGF0YV9vZmZzZXRzIjogWzAsIDI0XX0sICJsYWJlbHMiOi"
        "B7ImR0eXBlIjogIkk2NCIsICJzaGFwZSI6IFszXSwgImRhdGFfb2Zmc2V0cyI6IFsyNCwgNDhdfSwgImtleXMiOiB7ImR0eXBlIjogIkk2NCIs"
        "ICJzaGFwZSI6IFszLCAyXSwgImRhdGFfb2Zmc2V0cyI6IFs0OCwgOTZdfSwgImVtYmVkZGluZ3MiOiB7ImR0eXBlIjogIkYxNiIsICJzaGFwZS"
        "I6IFszLCA0XSwgImRhdGFfb2Zmc2V0cyI6IFs5NiwgMTIwXX0sICJfX21ldGFkYXRhX18iOiB7ImZvcm1hdCI6ICJsaWdodG5pbmdfZmFpbHVy"
        "ZXMgcG9vbCBzaGFyZCAxIiwgInBvb2wiOiAiYmVlZiIsICJkaXJlY3Rpb25zIjogIiIsICJjaGVja3N1bXMiOiAie1wiaWRzXCI6IFwiYzNlY2"
        "Y2Y2FkZmQ4Mzc5NDU2N2Y1MDNjNzE2ZWVlNGRcIiwgXCJsYWJlbHNcIjogXCI5YzIxNjE4Y2UxN2U5YTI1Y2Q4YjFiMzlhNjNhYTBiNVwiLCBc"
        "ImtleXNcIjogXCI5NzhkOTMzNDIwYmU0NDBkZDNhMzEzNDQ0Y2Q3NTY3MFwiLCBcImVtYmVkZGluZ3NcIjogXCI3MTE4MjNiNWJiOTQyY2YyMG"
        "ZkNmQ3NjgzNjFhNmRlMlwifSJ9fSAgBAAAAAAAAAAFAAAAAAAAAAYAAAAAAAAAAQAAAAAAAAD//////////wAAAAAAAAAABQAAAAAAAAD/////"
        "/////wMAAAAAAAAAAAAAAAAAAEAFAAAAAAAAAPn/////////AAAAMAA0ADYAOAA5ADoAOwA8gDwAPYA9"
    ),
    "scored": (
        "yAIAAAAAAAB7ImlkcyI6IHsiZHR5cGUiOiAiSTY0IiwgInNoYXBlIjogWzNdLCAiZGF0YV9vZmZzZXRzIjogWzAsIDI0XX0sICJsYWJlbHMiOi"
        "B7ImR0eXBlIjogIkk2NCIsICJzaGFwZSI6IFszXSwgImRhdGFfb2Zmc2V0cyI6IFsyNCwgNDhdfSwgImtleXMiOiB7ImR0eXBlIjogIkk2NCIs"
        "ICJzaGFwZSI6IFszLCAyXSwgImRhdGFfb2Zmc2V0cyI6IFs0OCwgOTZdfSwgImVtYmVkZGluZ3MiOiB7ImR0eXBlIjogIkYzMiIsICJzaGFwZS"
        "I6IFszLCA0XSwgImRhdGFfb2Zmc2V0cyI6IFs5NiwgMTQ0XX0sICJ2YWx1ZXMiOiB7ImR0eXBlIjogIkYzMiIsICJzaGFwZSI6IFszXSwgImRh"
        "dGFfb2Zmc2V0cyI6IFsxNDQsIDE1Nl19LCAiX19tZXRhZGF0YV9fIjogeyJmb3JtYXQiOiAibGlnaHRuaW5nX2ZhaWx1cmVzIHBvb2wgc2hhcm"
        "QgMSIsICJwb29sIjogImJlZWYiLCAiZGlyZWN0aW9ucyI6ICJkMSIsICJjaGVja3N1bXMiOiAie1wiaWRzXCI6IFwiMWE4ZWIzZDFjYzJiODZm"
        "ZWM4NjliZGNmMGU5YzM3YWFcIiwgXCJsYWJlbHNcIjogXCJiNzgzOWIwZGQ5ZmMyOWJlNGM4Njc5OWUyNTQyOTZjYlwiLCBcImtleXNcIjogXC"
        "I4ODUwZjExZGI4YjAyOTM0YzVhNmQwNDY3MTljODRjYlwiLCBcImVtYmVkZGluZ3NcIjogXCJjMGM4MzQzYzFiZTUzOTkxYmYwYjc5OTYwZWYy"
        "OWMyNVwiLCBcInZhbHVlc1wiOiBcIjFkNzMxNmUyZDRlMWJiZDMyNzAxNzNmMTA4ZWMyMTczXCJ9In19BAAAAAAAAAAFAAAAAAAAAAYAAAAAAA"
        "AAAQAAAAAAAAD//////////wAAAAAAAAAABQAAAAAAAAD//////////wMAAAAAAAAAAAAAAAAAAEAFAAAAAAAAAPn/////////AAAAAAAAAD4A"
        "AIA+AADAPgAAAD8AACA/AABAPwAAYD8AAIA/AACQPwAAoD8AALA/AAAAPwAAwH8AAMC/"
    ),
}


@pytest.mark.parametrize("name", WRITTEN_BEFORE)
def test_shard__files_of_earlier_versions(tmp_path, name):
    shard = PoolShard(
        ids=torch.arange(4, 7),
        labels=torch.tensor([1, POOL_UNLABELLED, 0]),
        keys=torch.tensor([[5, -1], [3, 2**62], [5, -7]]),
    )
    embeddings = torch.arange(12).view(3, 4) / 8
    if name == "half":
        shard = dataclasses.replace(shard, embeddings=embeddings.half())
    elif name == "scored":
        values = torch.tensor([0.5, float("nan"), -1.5])
        shard = dataclasses.replace(shard, embeddings=embeddings, values=values, directions="d1")
    content = base64.b64decode(WRITTEN_BEFORE[name])
    write_pool_shard(shard, tmp_path / "now", pool="beef")
    assert (tmp_path / "now").read_bytes() == content
    (tmp_path / "before").write_bytes(content)
    assert same(read_pool_shard(tmp_path / "before", range(4, 7), pool="beef"), shard)


@pytest.mark.slow
def test_shard__every_flipped_byte_is_found(tmp_path):
    write_pool_shard(score_shard(rows(3), fitted()), tmp_path / "whole", pool="p")
    whole = (tmp_path / "whole").read_bytes()
    damaged = tmp_path / "damaged"
    for place in range(len(whole)):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        try:
            read = read_pool_shard(damaged, range(3), pool="p")
        except DamagedShardError:
            continue
        # what JSON does not care about: the padding of the header
        assert same(read, read_pool_shard(tmp_path / "whole", range(3), pool="p")), place


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_shard__truncated(tmp_path, length):
    write_pool_shard(rows(3), tmp_path / "a", pool="p")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:length])
    with pytest.raises(DamagedShardError):
        read_pool_shard(tmp_path / "a", range(3), pool="p")


def test_shard__of_another_pool_or_block(tmp_path):
    write_pool_shard(rows(3), tmp_path / "a", pool="p")
    for block, pool in ((range(3), "q"), (range(1, 4), "p"), (range(4), "p")):
        with pytest.raises(DamagedShardError, match=r"another pool|other examples"):
            read_pool_shard(tmp_path / "a", block, pool=pool)


def test_scored__later_or_at_once_is_the_same(tmp_path):
    first, second = fitted(), fitted(5)
    assert directions_digest(first) != directions_digest(second)
    at_once = score_shard(rows(50), second)
    assert same(score_shard(score_shard(rows(50), first), second), at_once)
    plain = second.decision_values(rows(50).embeddings.float(), rows(50).labels)
    assert torch.equal(at_once.values.nan_to_num(7), plain.nan_to_num(7))
