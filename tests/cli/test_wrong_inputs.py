"""Wrong inputs: each ends in one line that says what is wrong and how to mend it, before torch is imported."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 2.0
"""CPU time of a command that needs no model."""

DIGITS = "configs/digits.yaml"
FILES = {
    "key.yaml": "trainer:\n  max_epochs: 2\n  max_epoch: 3\n",
    "top.yaml": "trainer: {}\nmodels: {}\n",
    "option.yaml": "trainer:\n  callbacks:\n    - class_path: lightning_failures.FailureModes\n"
    "      init_args:\n        robust_encodr: x\n",
    "broken.yaml": "trainer:\n  - a\n b: [\n",
    "list.yaml": "- trainer\n",
    "report.json": "{",
}
CHECKPOINT = "failures-digits/last.ckpt"

WRONG = [
    # arguments, exit status, what the line says
    (["trian"], 2, "no command 'trian'; lightning-failures --help lists all."),
    (["reprot", "x"], 2, "Did you mean report?"),
    (["report"], 2, "the following arguments are required: RUN (usage: lightning-failures report"),
    (["report", "nowhere"], 1, "No report.json in nowhere. A run writes <log_dir>/failures/report.json."),
    (["report", "nowhere", "--feature-names", "x.yaml", "--text-onyl"], 2, "Did you mean --text-only?"),
    (["diff", "a"], 2, "name either a second run, RUN_B, or two epochs of the first"),
    (["diff", "a", "b", "--join", "path"], 2, "invalid choice: 'path' (choose from"),
    (["diff", "a", "b", "--ids", "-1"], 2, "--ids: must be an integer of at least 0, got '-1'"),
    (["pin", "nowhere", "--class", "owl"], 1, "No report.json in nowhere."),
    (["export", "x", "--to", "excel"], 2, "--to: invalid choice: 'excel'"),
    (["study", "make", "nowhere", "--task", "describe"], 1, "No report.json in nowhere."),
    (["study", "make", "x", "--task", "guess"], 2, "--task: invalid choice: 'guess'"),
    (["reproduce", "cifar", "--data", "."], 1, "There is no recipe 'cifar'. Did you mean cifar10"),
    (["compare-methods", "nowhere", "--top", "0"], 1, "--top must be 1 ... 50"),
    (["study"], 2, "the following arguments are required: make|score"),
    (["demo", "--epochs", "0"], 1, "demo: epochs must be at least 1, got 0."),
    (["demo", "--shortcut", "1.5"], 1, "demo: shortcut must be between 0.5 and 0.99, got 1.5."),
    (["demo", "--sed", "3"], 2, "unrecognized arguments: --sed 3. Did you mean --seed? (usage: lightning-failures"),
    (["demo", "--seed", "3x"], 2, "argument --seed: invalid int value: '3x'"),
    (["fit"], 2, "fit needs a model: --config FILE"),
    (["analyse", "--config", "digit.yaml"], 1, "The config digit.yaml does not exist."),
    (
        ["analyse", "--config", "key.yaml"],
        1,
        "key.yaml, line 3: there is no option trainer.max_epoch. Did you",
    ),
    (["analyse", "--config", "top.yaml"], 1, "top.yaml, line 2: there is no option models. Did you mean model"),
    (["fit", "--config", "option.yaml"], 1, "no option FailureModes.robust_encodr. Did you mean robust_encoder"),
    (["fit", "--config", "broken.yaml"], 1, "broken.yaml, line 3 is not YAML"),
    (["fit", "--config", "list.yaml"], 1, "must be a mapping with keys such as trainer, model"),
    (["fit", "--config", DIGITS, "--trainer.max_epoch=3"], 2, "the Trainer has no option --trainer.max_epoch. Did you"),
    (["analyse", "--config", DIGITS, "--split", "valid"], 2, "must be one of train, validation, test, got 'valid'"),
    (["analyse", "--config", DIGITS, "--ckpt_path", CHECKPOINT], 1, f"The checkpoint {CHECKPOINT} does not exist."),
    (["verdict", "--config", DIGITS], 2, "verdict needs --ckpt_path TEXT: Checkpoint written before"),
    (["verdict", "--config", DIGITS, "--ckpt_path", "key.yaml", "--pairs", "0"], 1, "at least 1, got 0."),
    (["verdict", "--config", DIGITS, "--ckptpath", "x"], 2, "has no option --ckptpath. Did you mean --ckpt_path?"),
    (["embed", "--config", DIGITS, "--k", "many"], 2, "embed --k must be an integer, got 'many'"),
    (["embed", "--config", DIGITS, "--directions", "nowhere"], 1, "embed --directions: nowhere does not exist."),
    (["check-pins", "nowhere", "--config", DIGITS], 1, "does not exist."),
]


def run(folder: Path, arguments: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command in a folder; return what it printed and its CPU seconds."""
    code = "from lightning_failures.cli.main import main; raise SystemExit(main())"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("wrong")
    for name, text in FILES.items():
        (place / name).write_text(text)
    (place / "configs").mkdir()
    (place / DIGITS).write_text((ROOT / DIGITS).read_text())
    return place


@pytest.mark.parametrize(("arguments", "status", "says"), WRONG, ids=[" ".join(entry[0]) for entry in WRONG])
def test_wrong_input__is_one_line_at_once(folder, arguments, status, says):
    done, seconds = run(folder, arguments)
    (line,) = done.stderr.splitlines()
    assert line.startswith("lightning-failures: ")
    assert says in line
    assert done.returncode == status
    assert done.stdout == ""
    if seconds > MOST_SECONDS:  # a busy machine
        _, seconds = run(folder, arguments)
    assert seconds <= MOST_SECONDS


def test_wrong_inputs__are_at_least_twenty():
    assert len({tuple(arguments) for arguments, _, _ in WRONG}) >= 20


def test_right_inputs__pass_the_checks(monkeypatch):
    from lightning_failures.cli.model_options import check

    for config in sorted((ROOT / "configs").glob("*.yaml")):
        check("fit", ["--config", str(config)])
        check("analyse", [f"--config={config}", "--trainer.max_epochs=1", "--split", "train", "--ckpt_path=null"])
    monkeypatch.chdir(ROOT)
    check("fit", ["-c", DIGITS, "--trainer.callbacks+=Timer", "--trainer.callbacks.duration=3", "--model.x", "-1"])
    check("fit", ["--model", "some.Model", "--print_config"])
    check("check-pins", ["tests", "--config", DIGITS, "--json", "true"])
    check("embed", ["--config", DIGITS, "--shop", "5", "--directions", "tests"])


# -- what only Lightning can judge -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model.init_args.widht=3"], "widht"),
        (["--model", "nowhere.Model"], "nowhere"),
        (["--trainer.max_epochs=x"], "max_epochs"),
    ],
)
def test_wrong_input__of_the_user_classes_is_one_line(options, says, capsys, monkeypatch):
    from lightning_failures.cli import main

    monkeypatch.setattr("sys.argv", ["lightning-failures"])
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(ROOT / DIGITS), *options])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lightning-failures: fit: ")
    assert says in line
