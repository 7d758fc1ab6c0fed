"""Help and checks of commands with model and data; ``test_wrong_inputs.py`` holds the table of wrong inputs."""

from __future__ import annotations

import ast
import inspect

import pytest
from lightning.pytorch import Trainer

from lightning_failures import FailureModes
from lightning_failures.cli.commands import COMMANDS
from lightning_failures.cli.lightning_commands import FailureTrainer
from lightning_failures.cli.model_options import _known_keys, check, help_text
from lightning_failures.errors import ConfigurationError

SCREEN = 50
"""Lines of a screen."""

WITH_MODEL = [name for name, command in COMMANDS.items() if not command.function]


@pytest.mark.parametrize("command", WITH_MODEL)
def test_help__fits_a_screen_and_names_every_option(command):
    text = help_text(command)
    lines = text.splitlines()
    assert len(lines) <= SCREEN
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith(f"usage: lightning-failures {command} ")
    method = getattr(FailureTrainer, command)
    names = set(inspect.signature(method).parameters) - {"self", "model", "datamodule"}
    if command not in ("fit", "validate", "test"):
        assert all(f"--{name} " in text for name in names)


def test_known_keys__are_those_of_the_classes():
    known = _known_keys()
    assert known.trainer == set(inspect.signature(Trainer.__init__).parameters) - {"self"}
    assert known.failure_modes >= set(inspect.signature(FailureModes.__init__).parameters) - {"self", "former"}
    assert "min_coverage" in known.failure_modes


def test_check__configs_given_as_text_are_left_to_lightning():
    check("fit", ["--config", "{model: some.Model}"])


def test_check__the_last_of_several_configs_wins(tmp_path):
    (tmp_path / "a.yaml").write_text("ckpt_path: nowhere.ckpt\n")
    (tmp_path / "b.yaml").write_text("ckpt_path: null\nfoo: !custom 3\n")
    with pytest.raises(ConfigurationError, match=r"The checkpoint nowhere.ckpt does not exist"):
        check("fit", ["--config", str(tmp_path / "a.yaml")])
    (tmp_path / "here.ckpt").write_text("")
    check("fit", ["--config", str(tmp_path / "a.yaml"), "--ckpt_path", str(tmp_path / "here.ckpt")])
    check("fit", ["--config", str(tmp_path / "b.yaml")])  # a tag that this reader does not know


def test_check__a_missing_checkpoint_names_those_that_are_there(tmp_path):
    (tmp_path / "epoch=3.ckpt").write_text("")
    (tmp_path / "c.yaml").write_text("trainer: {}\n")
    with pytest.raises(ConfigurationError, match=r"There are: .*epoch=3.ckpt"):
        check("analyse", ["--config", str(tmp_path / "c.yaml"), "--ckpt_path", str(tmp_path / "epoch=4.ckpt")])


def test_module__imports_nothing_heavy():
    tree = ast.parse(inspect.getsource(inspect.getmodule(check)))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith(("torch", "lightning.")) for name in imported if name)
