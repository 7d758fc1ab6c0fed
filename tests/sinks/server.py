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
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            told = []
            for line in server.stderr:
                told.append(line)
                if found := re.search(r"at (http://127\.0\.0\.1:\d+/)", line):
                    yield found[1]
                    return
            raise RuntimeError(f"TensorBoard did not start: {''.join(told)}")
        finally:
            server.terminate()
            server.communicate(timeout=60)
