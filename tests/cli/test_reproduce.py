"""The command ``reproduce`` end to end: real trainings on small folders in the layouts of the data sets."""

from __future__ import annotations

import json

import pytest

from lightning_failures.cli import main
from tests.recipes.generated import celeba, cifar, image_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
]


def options(tmp_path, *more: str) -> list[str]:
    return [
        "--encoder", "embedded:digits", "--output", str(tmp_path / "out"), "--epochs", "1", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_folder__trains_and_leaves_a_report(tmp_path, capsys):
    data = image_folder(tmp_path / "pets", images=60)
    assert main(["reproduce", "folder", "--data", str(data), *options(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "accuracy" in out
    assert (tmp_path / "out" / "folder" / "seed-0" / "failures" / "report.html").is_file()
    assert json.loads((tmp_path / "out" / "folder" / "folder.json").read_text())["claims"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar100", "cifar10", "celeba"])
def test_papers__claims_are_not_measured_on_other_data(tmp_path, monkeypatch, capsys, name):
    if name == "celeba":
        data = celeba(tmp_path / "data", monkeypatch, images=150)
    else:
        data = cifar(tmp_path / "data", monkeypatch, fine=int(name[5:]), images=3 if name == "cifar100" else 8)
    assert main(["reproduce", name, "--data", str(data), *options(tmp_path)]) == 0
    content = json.loads((tmp_path / "out" / name / f"{name}.json").read_text())
    assert content["claims"]
    assert all(one["verdict"].startswith("not measured here") for one in content["claims"])
    assert content["seeds"][0]["figures"]["accuracy"] >= 0
    assert "not measured here" in (tmp_path / "out" / name / f"{name}.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar"], "There is no recipe 'cifar'"),
        (["folder", "--data", "/none"], "is no folder"),
        (["folder", "--epochs", "0"], "--epochs must be at least 1"),
        (["folder", "--seeds", "1", "1"], "--seeds must differ"),
    ],
)
def test_wrong_options__one_line_before_anything_is_read(tmp_path, capsys, arguments, message):
    given = arguments if "--data" in arguments else [*arguments, "--data", str(tmp_path)]
    assert main(["reproduce", *given]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
