"""The configs of recipes: a short training with the callback on small folders, and loaders of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_failures.cli import main
from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes import RecipeData, network
from tests.recipes.generated import chestxray14, cifar, image_folder
from tests.recipes.parts.conftest import tiny_network

CONFIGS = Path(__file__).parents[2] / "configs"


def of_config(name: str, data: Path, folder: Path) -> Path:
    """A config of the repository for another folder, with the packaged encoder."""
    content = yaml.safe_load((CONFIGS / name).read_text())
    content["data"]["init_args"]["data"] = str(data)
    content["trainer"]["callbacks"][0]["init_args"]["encoder"] = "embedded:digits"
    content["trainer"] |= {"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1, "logger": {
        "class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}}  # fmt: skip
    (folder / name).write_text(yaml.safe_dump(content))
    return folder / name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("name", ["recipe_cifar10.yaml", "recipe_chestxray14.yaml", "recipe_folder.yaml"])
def test_configs__train_with_the_callback(tmp_path, monkeypatch, name):
    monkeypatch.setattr(network, "network", tiny_network)
    monkeypatch.setattr("sys.argv", ["lightning-failures"])
    data = tmp_path / "data"
    data.mkdir()
    if "cifar10" in name:
        cifar(data, monkeypatch, fine=10, images=10)
    elif "chest" in name:
        chestxray14(data, images=36)
    else:
        image_folder(data / "pets", images=30)
        data = data / "pets"
    config = of_config(name, data, tmp_path)
    assert main(["fit", "--config", str(config), "--trainer.enable_progress_bar=false"]) == 0
    assert len(list(tmp_path.glob("lightning_logs/version_0/failures/report.json"))) == 1


def test_loaders__of_a_recipe_and_its_variant(tmp_path, monkeypatch):
    data = cifar(tmp_path, monkeypatch, fine=10, images=10)
    found = RecipeData("cifar10", str(data))
    images, labels = next(iter(found.val_dataloader()))
    assert images.shape == (100, 3, 32, 32)
    assert set(labels.tolist()) == set(range(10))
    assert len(found.predict_dataloader().dataset) == 300
    assert len(found.test_dataloader().dataset) == len(found.train_dataloader().dataset) == 100
    without = RecipeData("cifar10", str(data), variant="80-20")
    assert len(without.train_dataloader().dataset) == 400
    with pytest.raises(ConfigurationError, match="has no pool"):
        without.predict_dataloader()


@pytest.mark.parametrize(
    ("name", "variant", "message"),
    [
        ("cifar", None, "Did you mean"),
        ("imagenet-barlow", None, "that trains a network"),
        ("cifar10", "20-40-40", "Variants: 20-60-20, 80-20"),
        ("folder", "full", "It has none"),
    ],
)
def test_names__that_are_not_there(tmp_path, name, variant, message):
    with pytest.raises(ConfigurationError, match=message):
        RecipeData(name, str(tmp_path), variant=variant).setting  # noqa: B018
