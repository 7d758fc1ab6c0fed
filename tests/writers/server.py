"""The real TensorBoard, for tests and screenshots."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def tensorboard(log_dir: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine alone; gives the address, and stops the server at the end."""
    place = log_dir.resolve()  # its pages name the folder as the command does
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", place.name, "--host", "127.0.0.1", "--port", "0"]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=place.parent, **output) as server:
        try:
            assert server.stderr is not None
            lines = []
            for line in server.stderr:
                lines.append(line)
                if found := re.search(r"at (http://127\.0\.0\.1:\d+/)", line):
                    yield found[1]
                    return
            raise RuntimeError(f"TensorBoard did not start: {''.join(lines)}")
        finally:
            server.terminate()
            server.communicate(timeout=60)
