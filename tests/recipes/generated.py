"""Small folders in the layouts of the papers' data sets, and their checksums in place of the published ones."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision import datasets


def image_folder(root: Path, *, classes=("cat", "dog"), images: int = 30, size: int = 48, seed: int = 0) -> Path:
    """One folder of images for each class; a third of each class is dark."""
    rng = np.random.default_rng(seed)
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(images):
            pixels = rng.integers(0, 60, (size, size, 3))
            pixels[..., k % 3] += 150 if i % 3 else 20
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:03d}.png")
    return root


def cifar(root: Path, monkeypatch, *, fine: int, images: int = 6, seed: int = 0) -> Path:
    """CIFAR-10 (``fine=10``) or CIFAR-100 with a few images of each class, in the authors' files."""
    dataset = datasets.CIFAR10 if fine == 10 else datasets.CIFAR100
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    names = sorted(_FINE) if fine == 100 else [f"class {k}" for k in range(10)]
    key = "labels" if fine == 10 else "fine_labels"

    def write(name: str, content: object) -> list[str]:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return [name, hashlib.md5(data).hexdigest()]

    def batch() -> dict:
        labels = np.repeat(np.arange(fine), images)
        pixels = rng.integers(0, 255, (len(labels), 3072), dtype=np.uint8)
        return {"data": pixels, key: labels.tolist()}

    train = [write(name, batch()) for name, _ in dataset.train_list]
    test = [write(name, batch()) for name, _ in dataset.test_list]
    meta = write(dataset.meta["filename"], {dataset.meta["key"]: names})
    monkeypatch.setattr(dataset, "train_list", train)
    monkeypatch.setattr(dataset, "test_list", test)
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": meta[1]})
    return root


def celeba(root: Path, monkeypatch, *, images: int = 120, seed: int = 0) -> Path:
    """CelebA with a few images, three fifths of them training, and the annotation files of torchvision."""
    rng = np.random.default_rng(seed)
    folder = root / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(images)]
    attributes = rng.integers(0, 2, (images, 40)) * 2 - 1
    for name, row in zip(names, attributes, strict=True):
        level = 200 if row[_YOUNG] > 0 else 60
        pixels = np.clip(rng.normal(level, 30, (109, 89, 3)), 0, 255)
        pixels[:30] *= 1.0 if row[_MALE] > 0 else 0.3
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "img_align_celeba" / name)
    columns = [f"Attribute_{k}" for k in range(40)]
    columns[_YOUNG], columns[_MALE] = "Young", "Male"
    split = [0 if i % 5 < 3 else i % 5 - 2 for i in range(images)]
    files = {
        "list_eval_partition.txt": "".join(f"{name} {part}\n" for name, part in zip(names, split, strict=True)),
        "identity_CelebA.txt": "".join(f"{name} {i}\n" for i, name in enumerate(names)),
        "list_attr_celeba.txt": _table(columns, names, attributes),
        "list_bbox_celeba.txt": _table(
            ["x_1", "y_1", "width", "height"], names, np.ones((images, 4), int), head="image_id "
        ),
        "list_landmarks_align_celeba.txt": _table([f"p{k}" for k in range(10)], names, np.ones((images, 10), int)),
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    listed = [
        (one[0], hashlib.md5(files[one[2]].encode()).hexdigest() if one[2] in files else one[1], one[2])
        for one in datasets.CelebA.file_list
    ]
    monkeypatch.setattr(datasets.CelebA, "file_list", listed)
    return root


_YOUNG, _MALE = 39, 20


def _table(columns: list[str], names: list[str], rows: np.ndarray, head: str = "") -> str:
    lines = [f"{name} {' '.join(map(str, row))}" for name, row in zip(names, rows.tolist(), strict=True)]
    return "\n".join([str(len(names)), head + " ".join(columns), *lines]) + "\n"


def _names() -> list[str]:
    from lightning_failures.recipes.cifar import SUPERCLASSES

    return [name for subs in SUPERCLASSES.values() for name in subs.split()]


_FINE = _names()
