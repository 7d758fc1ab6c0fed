"""Signs of life on a stream."""

from __future__ import annotations

import io
import os
import time

from lightning_failures.cli.heartbeat import doing, heartbeat


class Stream(io.TextIOWrapper):
    """Text in memory that takes attributes, as the standard streams do."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), write_through=True)

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode()


def test_heartbeat__after_silence_only():
    stream = Stream()
    with heartbeat(stream, every=0.3, always=True):
        for _ in range(6):
            time.sleep(0.1)
            stream.write(".")  # a progress bar
        assert stream.text == "......"
        deadline = time.monotonic() + 20
        while stream.text.count("loading") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    lines = stream.text.splitlines()
    assert lines[0].startswith("......")
    assert all(line.endswith("loading ...") for line in lines)
    shown = stream.text
    time.sleep(0.4)
    stream.write("end")
    assert stream.text == f"{shown}end"


def test_heartbeat__not_in_pipes_and_logs():
    stream = Stream()
    with heartbeat(stream, every=0.01):
        time.sleep(0.1)
    assert stream.text == ""


def test_heartbeat__on_a_terminal():
    ours, theirs = os.openpty()
    with open(theirs, "w") as stream, heartbeat(stream, every=0.05):  # noqa: PTH123 - a descriptor
        assert os.read(ours, 100).endswith(b"...\r\n")
    os.close(ours)


def test_doing__names_the_room_of_the_innermost_function():
    import sys

    def inside(name: str):
        scope = {"__name__": name, "doing": doing, "sys": sys}
        exec("def f():\n    return doing(sys._getframe())", scope)
        return scope["f"]()

    assert inside("lightning_failures.captions.scoring") == "scoring captions"
    assert inside("lightning_failures.cli.main") == "loading"
    assert inside("elsewhere") == "loading"
