"""Every code block of the documents runs: the tutorials from the first line to the last, the others in their place.

What a reader brings along (data, a model, a run) is a small stand-in under the same name. Commands that read files run
on the run of the tutorials. Commands that train are run by ``tests/cli`` and by the tutorials; here their options and
files are checked as the shell checks them before it starts.
"""

from __future__ import annotations

import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import lightning as L
import pytest
import torch
import yaml
from PIL import Image
from torchvision import transforms as T

from lightning_failures import FailureModes
from lightning_failures.cli import main
from lightning_failures.cli.commands import COMMANDS
from lightning_failures.cli.model_options import check
from lightning_failures.cli.options import OPTIONS
from tests.helpers.toy import NORMALIZE, Classifier, ColourEncoder, Images, loader

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
TUTORIALS = [
    DOCS / "tutorials" / f"{name}.md" for name in ("own-images", "reading-a-report", "finding-to-fix", "pins-in-ci")
]
"""Those that continue each other, in their order."""

INSTALLED = ("pip install", "python3 -m venv", ".venv/bin/", "source .venv/bin/activate", "bash .ci/run")
"""Lines that install the package or run its tests: the continuous integration runs them."""


class Block(NamedTuple):
    """A fenced block: the line before it, its language and its text."""

    before: str
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    before, language, text = "", None, []
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            if language is None:
                language, text = line[3:].strip(), []
            else:
                yield Block(before, language, "\n".join(text) + "\n")
                language = None
        elif language is not None:
            text.append(line)
        elif line.strip():
            before = line if line.startswith("#") else f"{before if not before.startswith('#') else ''} {line}"[-400:]


def commands(page: Path) -> list[list[str]]:
    """The commands of the package in the shell blocks of a page, as lists of arguments."""
    lines = [line for block in blocks(page) if block.language in ("bash", "") for line in block.text.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("lightning-failures ")]


def file_to_save(block: Block) -> str | None:
    """The name of the file that the sentence before a block says to save it as."""
    if block.language not in ("python", "yaml"):
        return None
    _, found, rest = block.before.rpartition("ave this as")
    return rest.split("`")[1] if found and "`" in rest else None


def run_shell(line: str) -> int:
    """Run a line of a shell block in this process, and return its exit status."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "python":
        runpy.run_path(arguments[0], run_name="__main__")
        return 0
    assert program == "lightning-failures", line
    return main(arguments)


# -- the tutorials ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder of a person who has followed the tutorials, with what the commands said: exit status by command."""
    folder = tmp_path_factory.mktemp("tutorials")
    statuses: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning says of few workers and old trees
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["lightning-failures"])
        patch.setattr(sys, "path", [path for path in sys.path if path])
        patch.setenv("LIGHTNING_FAILURES_CACHE", str(folder / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "0")  # as it was before, afterwards
        for page in TUTORIALS:
            names: dict[str, object] = {}
            for block in blocks(page):
                if name := file_to_save(block):
                    Path(name).write_text(block.text)
                elif block.language == "python":
                    exec(compile(block.text, str(page), "exec"), names)
                elif block.language == "bash":
                    for line in block.text.splitlines():
                        if not line.startswith(INSTALLED):
                            statuses[line] = run_shell(line)
    sys.modules.pop("train", None)
    return folder, statuses


@pytest.mark.slow
def test_tutorials__every_command_succeeds(followed):
    folder, statuses = followed
    assert len(statuses) >= 10
    assert {line: status for line, status in statuses.items() if status} == {}
    assert (folder / "lightning_logs" / "version_0" / "failures" / "report.html").is_file()


@pytest.mark.slow
def test_tutorials__a_pin_that_was_mended_holds_and_the_old_model_fails(followed, monkeypatch, capsys):
    folder, _ = followed
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lightning-failures"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["check-pins", "pins", "--config", "run.yaml", "--ckpt_path", "model.ckpt"]) == 1
    sys.modules.pop("train", None)
    assert "eight is open" in capsys.readouterr().out


# -- shell blocks of the other pages ---------------------------------------------------------------------------------

STAND_INS = {
    "lightning_logs/version_3": "lightning_logs/version_0",
    "lightning_logs/version_4": "lightning_logs/version_2",
    "failures-digits/digits/version_0": "lightning_logs/version_0",
    "config.yaml": "run.yaml",
    "run.yaml": "run.yaml",
    "configs/digits.yaml": str(ROOT / "configs" / "digits.yaml"),
    "new.ckpt": "failures-retrained/retrained.ckpt",
    "last.ckpt": "model.ckpt",
    "epoch=0.ckpt": "model.ckpt",
    "owl": "eight",
    "owl 1": "eight 1",
    "configs/recipe_cifar100.yaml": str(ROOT / "configs" / "recipe_cifar100.yaml"),
    "my_images": "data/val",
    "tiles": "data/val",
    "~/data": "data",
    "layer.safetensors": "model.ckpt",  # any file: it is not read here
    "features.safetensors": "model.ckpt",
    "answers-simulate-*.json": "answers.json",
}
READ_FILES = ("report", "diff", "export", "pin")
"""Commands that run here, on the run of the tutorials. ``study`` needs trees, a sparse layer, or the answers of people:
``tests/cli/test_study.py`` has them."""

OTHERS = [(page, line) for page in PAGES if page not in TUTORIALS for line in commands(page)]


def label(value: Path | list[str]) -> str:
    return value.stem if isinstance(value, Path) else " ".join(value[:3])


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line"), OTHERS, ids=label)
def test_shell_block(page, line, followed, monkeypatch, capsys):
    monkeypatch.chdir(followed[0])
    command, *arguments = [STAND_INS.get(word, word) for word in line]
    assert command in COMMANDS
    if command in READ_FILES:
        assert main([command, *arguments]) == 0
        assert capsys.readouterr().out.strip()
    elif command in OPTIONS:
        assert vars(OPTIONS[command](arguments))
    elif arguments:
        check(command, arguments)
    else:
        assert command == "demo"  # the README's first command


def test_shell_blocks__are_found():
    found = {line[0] for page in PAGES for line in commands(page)}
    assert {"demo", "fit", "doctor", "analyse", "report", "diff", "embed", "export", "study", "pin"} <= found
    assert {"check-pins", "verdict", "retrain-head", "reproduce", "compare-methods"} <= found


# -- python and yaml blocks ------------------------------------------------------------------------------------------

SMALLER = {
    '"ViT-B-32/openai"': "ColourEncoder()",
    '"embedded:digits"': "ColourEncoder()",
    "max_epochs=10": "max_epochs=1, **quiet",
    'accelerator="gpu", devices=4, strategy="ddp", ': "",
}


class Columns(Images):
    """Stands for a Hugging Face dataset, of which the documents need one method."""

    def with_transform(self, transform):
        return self


def world() -> dict[str, object]:
    """What a reader has when he reads a block: data, a model, grades."""
    transform = T.Compose([T.Resize((8, 8)), T.ToTensor(), T.Normalize([0.5], [0.25])])
    data, other = Images(160), Images(40, seed=1)
    embeddings = ColourEncoder().encode_images(data.images)
    predictions = torch.where(data.dark, (data.labels + 1) % 4, data.labels)
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    return {
        "L": L, "torch": torch, "ColourEncoder": ColourEncoder, "quiet": quiet,
        "model": Classifier(), "train": loader(shuffle=True), "val": loader(seed=1),
        "train_transform": transform, "val_transform": transform,
        "ids": torch.arange(160), "labels": data.labels, "predictions": predictions,
        "confidence": torch.where(data.dark, 0.2, 0.8), "class_names": tuple(data.classes), "embeddings": embeddings,
        "other_embeddings": ColourEncoder().encode_images(other.images), "other_labels": other.labels,
        "dataset": {"train": Columns()}, "augment_and_normalise": NORMALIZE,
        "processor": SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.25] * 3),
        "F": torch.nn.functional, "FailureModes": FailureModes,
    }  # fmt: skip


PYTHON_PAGES = [
    page for page in PAGES if page not in TUTORIALS and any(block.language == "python" for block in blocks(page))
]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*")
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: page.stem)
def test_python_blocks__run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for k in range(8):
            path = tmp_path / "data" / split / f"class {k % 4}" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (30 * k, 100, 50)).save(path)
    names = world()
    for block in blocks(page):
        if block.language == "python":
            text = block.text
            for long, short in SMALLER.items():
                text = text.replace(long, short)
            exec(compile(text, str(page), "exec"), names)
    assert set(names) > set(world())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_yaml_blocks__can_be_read(page):
    for block in blocks(page):
        if block.language == "yaml":
            assert yaml.safe_load(block.text)


def test_blocks__have_a_language_that_is_known():
    known = {"python", "bash", "yaml", "text", "bibtex", "", "{toctree}", "{eval-rst}"}
    assert {block.language for page in PAGES for block in blocks(page)} <= known
