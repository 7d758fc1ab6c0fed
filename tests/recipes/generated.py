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


def imagenet(root: Path, *, classes: int = 3, images: int = 12, flat: bool = False, seed: int = 0) -> Path:
    """ILSVRC: train/ by WordNet id, and val/ in the same form, or flat beside the table of Kaggle."""
    rng = np.random.default_rng(seed)
    top = root / "ILSVRC" / "Data" / "CLS-LOC" if flat else root
    rows = ["ImageId,PredictionString"]
    for k, name in enumerate(WORDNET_IDS[:classes]):
        for part, number in (("train", images), ("val", max(images // 3, 2))):
            folder = top / part if flat and part == "val" else top / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(number):
                stem = f"ILSVRC2012_val_{k}{i:07d}" if part == "val" else f"{name}_{i}"
                pixels = rng.integers(0, 80, (40, 48, 3))
                pixels[..., k % 3] += 120 if i % 2 else 60
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{stem}.JPEG")
                if part == "val":
                    rows.append(f"{stem},{name} 1 2 30 40 ")
    if flat:
        (root / "LOC_val_solution.csv").write_text("\n".join(rows) + "\n")
    return root


WORDNET_IDS = ("n01440764", "n01443537", "n02123045", "n03709823")
"""Tench, goldfish, tabby cat, mailbag."""


def chestxray14(root: Path, *, images: int = 60, seed: int = 0) -> Path:
    """ChestX-ray14: the table, the two lists, and gray images in two of the folders of the archives."""
    from lightning_failures.recipes.chestxray import CONDITIONS

    rng = np.random.default_rng(seed)
    rows, parts = [], {"train_val_list.txt": [], "test_list.txt": []}
    for i in range(images):
        patient = i // 3 + 1
        name, view = f"{patient:08d}_{i % 3:03d}.png", "AP" if rng.random() < 0.4 else "PA"
        found = [condition for condition in CONDITIONS if rng.random() < 0.3]
        folder = root / f"images_{1 + i % 2:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 90, (36, 36)) + 60 * (view == "AP") + 60 * ("Effusion" in found)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
        rows.append(f"{name},{'|'.join(found) or 'No Finding'},{i % 3},{patient},58,M,{view},2682,2749,0.143,0.143,")
        parts["test_list.txt" if patient % 4 == 0 else "train_val_list.txt"].append(name)
    head = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    head += ",OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    (root / "Data_Entry_2017.csv").write_text("\n".join([head, *rows]) + "\n")
    for name, files in parts.items():
        (root / name).write_text("\n".join(files) + "\n")
    return root


def mnist(root: Path, *, images: int = 120, seed: int = 0) -> Path:
    """MNIST: the four files of the authors, with blobs whose place tells the digit."""
    rng = np.random.default_rng(seed)
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, number in (("train", images), ("t10k", images // 2)):
        digits = np.arange(number) % 10
        pixels = rng.integers(0, 30, (number, 28, 28))
        for i, digit in enumerate(digits):
            pixels[i, 2 * digit : 2 * digit + 8, 8:20] = 220
        header = np.array([2051, number, 28, 28], dtype=">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.astype(np.uint8).tobytes())
        header = np.array([2049, number], dtype=">i4").tobytes()
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + digits.astype(np.uint8).tobytes())
    return root
