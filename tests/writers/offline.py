"""Offline runs of W&B, read back from their logs of transactions."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def transactions(folder: Path, *, seconds: float = 60) -> list[Any]:
    """The records of a run that is over: its last one may reach the disk after wandb.finish() has returned."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    end = time.monotonic() + seconds
    while True:
        records = list(read_records(path.read_bytes()))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < end, "the run has no end"
        time.sleep(0.05)


def read_records(data: bytes) -> Iterator[Any]:
    """W&B's own messages in a log in the format of LevelDB: blocks of 32 KiB, records in one part or several."""
    from wandb.proto.wandb_internal_pb2 import Record

    place, parts = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if place + 7 + length > len(data):
            return
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(parts)
            parts = b""
