"""The command ``reproduce`` end to end: real trainings on small folders in the layouts of the data sets."""

from __future__ import annotations

import json

import pytest
import torch

from lightning_failures.cli import main
from lightning_failures.recipes import RECIPES, network
from lightning_failures.recipes import cifar as cifar_recipe
from tests.encoders.tiny import resnet
from tests.recipes.generated import celeba, chestxray14, cifar, image_folder, imagenet, mnist
from tests.recipes.parts.conftest import tiny_network


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


@pytest.fixture
def _small_networks(monkeypatch):
    """Train small networks in place of ResNets, and at two degrees in place of nine."""
    monkeypatch.setattr(network, "network", tiny_network)
    monkeypatch.setattr(cifar_recipe, "DEGREES", (0.1, 0.9))


EXPECTED = {
    "cifar100": {"accuracy on the hard group with picks by direction", "minority accuracy, degree 0.9"},
    "cifar10": {"accuracy with picks by confidence"},
    "celeba": {"hard in top 10", "hard in all"},
}


@pytest.mark.slow
@pytest.mark.usefixtures("_small_networks")
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
    assert EXPECTED[name] <= set(content["seeds"][0]["figures"])
    out = capsys.readouterr().out
    for part in RECIPES[name].parts:
        assert f"  {part.name}: {part.summary}" in out
    assert "not measured here" in (tmp_path / "out" / name / f"{name}.html").read_text()


GENERATED = {
    "chestxray14": lambda root: chestxray14(root, images=36),
    "imagenet": lambda root: imagenet(root, images=10, flat=True),
    "imagenet-c": lambda root: imagenet(root, images=10),
    "coloured-mnist": lambda root: mnist(root, images=100),
}


@pytest.mark.slow
@pytest.mark.usefixtures("_small_networks")
@pytest.mark.parametrize("name", list(GENERATED))
def test_papers__layouts_of_the_other_data_sets(tmp_path, name):
    (tmp_path / "data").mkdir()
    data = GENERATED[name](tmp_path / "data")
    assert main(["reproduce", name, "--data", str(data), *options(tmp_path)]) == 0
    content = json.loads((tmp_path / "out" / name / f"{name}.json").read_text())
    assert content["claims"]
    assert all(one["verdict"].startswith("not measured here") for one in content["claims"])
    assert 0 <= content["seeds"][0]["figures"]["accuracy"] <= 1
    assert (tmp_path / "out" / name / "seed-0" / "failures" / "report.html").is_file()


@pytest.mark.slow
def test_barlow__examines_two_networks_that_were_trained_before(tmp_path, capsys):
    data = imagenet(tmp_path / "data", classes=2, images=120)
    for k, name in enumerate(("standard", "robust")):
        net = resnet()
        net.fc = torch.nn.Linear(512, 2)
        torch.manual_seed(k)
        torch.nn.init.normal_(net.fc.weight)
        torch.save(net.state_dict(), tmp_path / f"{name}.pt")
    arguments = ["reproduce", "imagenet-barlow", "--data", str(data), "--quick", *options(tmp_path)]
    assert main(arguments) == 1
    assert "--weights FILE" in capsys.readouterr().err
    networks = ["--weights", str(tmp_path / "standard.pt"), "--robust-encoder", str(tmp_path / "robust.pt")]
    assert main([*arguments, *networks]) == 0
    content = json.loads((tmp_path / "out" / "imagenet-barlow" / "imagenet-barlow.json").read_text())
    figures = content["seeds"][0]["figures"]
    for name in ("standard", "robust"):
        assert 0 <= figures[f"{name}: accuracy"] <= 1
        assert 0 <= figures[f"{name}: accuracy of the sparse layer"] <= 1
    assert all(one["verdict"].startswith("not measured here") for one in content["claims"])
    (sheet,) = content["seeds"][0]["files"].values()
    assert (tmp_path / "out" / "imagenet-barlow" / sheet).is_file()
    assert f'src="{sheet}"' in (tmp_path / "out" / "imagenet-barlow" / "imagenet-barlow.html").read_text()
    assert (tmp_path / "out" / "imagenet-barlow" / "seed-0" / "failures" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar"], "There is no recipe 'cifar'"),
        (["folder", "--data", "/none"], "is no folder"),
        (["folder", "--epochs", "0"], "--epochs must be at least 1"),
        (["folder", "--seeds", "1", "1"], "--seeds must differ"),
        (["folder", "--variant", "full"], "folder has no variant 'full'"),
        (["cifar10", "--parts", "filtr"], "Did you mean 'filter'"),
        (["celeba", "--inception", "/none.pth"], "--inception /none.pth is no file"),
        (["cifar10", "--decoder", "/none"], "--decoder /none is no folder"),
        (["imagenet-barlow", "--parts", "levels"], "imagenet-barlow has no part 'levels'. It has none"),
    ],
)
def test_wrong_options__one_line_before_anything_is_read(tmp_path, capsys, arguments, message):
    given = arguments if "--data" in arguments else [*arguments, "--data", str(tmp_path)]
    assert main(["reproduce", *given]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
