"""Users without a home, as containers have them: the folder that they get is private, and libraries find it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_failures.core.home import default_cache_bytes, private_folder
from lightning_failures.errors import ConfigurationError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a user always has a home")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _asked_anew():
    private_folder.cache_clear()


def test_private_folder__is_private_and_the_same_again(tmp_path):
    folder = private_folder(tmp_path)
    private_folder.cache_clear()
    assert private_folder(tmp_path) == folder
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["open to all", "a link", "a file"])
def test_private_folder__that_others_may_have_made_is_not_used(tmp_path, kind):
    taken = tmp_path / f"lightning_failures-{os.getuid()}"
    if kind == "open to all":
        taken.mkdir()
        taken.chmod(0o777)
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        taken.symlink_to(tmp_path / "elsewhere")
    else:
        taken.touch()
    folder = private_folder(tmp_path)
    assert folder.resolve() not in (taken.resolve(), taken)
    assert folder.stat().st_mode & 0o777 == 0o700


RUN = """
import os, pwd, warnings
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
from tests.helpers.toy import OracleClassifier, loader, trainer
from lightning_failures import FailureModes
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", ".*does not have many workers.*")
run = trainer(".", FailureModes(encoder="embedded:digits", on_error="raise"))
run.validate(OracleClassifier(), loader(64), verbose=False)
"""


@pytest.mark.slow
def test_run__of_a_user_without_a_home(tmp_path):
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    left_out = ("HOME", "XDG_CACHE_HOME", "LIGHTNING_FAILURES_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", RUN], cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in here.iterdir()] == ["failures"]
    assert list(here.rglob("report.html"))
    assert list((temporary / f"lightning_failures-{os.getuid()}").rglob("*.safetensors"))


def test_default_cache_bytes__what_the_user_says(monkeypatch):
    monkeypatch.delenv("LIGHTNING_FAILURES_CACHE_SIZE", raising=False)
    assert default_cache_bytes() == 4 * 2**30
    monkeypatch.setenv("LIGHTNING_FAILURES_CACHE_SIZE", "1.5 GiB")
    assert default_cache_bytes() == 3 * 2**29
    monkeypatch.setenv("LIGHTNING_FAILURES_CACHE_SIZE", "plenty")
    with pytest.raises(ConfigurationError, match="LIGHTNING_FAILURES_CACHE_SIZE=plenty is no size"):
        default_cache_bytes()
