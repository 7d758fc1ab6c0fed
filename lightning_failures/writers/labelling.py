"""Images to label or to look at, in files that labelling tools read: CSV, Label Studio, FiftyOne.

Formats: Label Studio's basic JSON of tasks, with the class as a prediction (https://labelstud.io/guide/tasks), and its
labelling configuration; FiftyOne's serialised samples, which
``fiftyone.Dataset.from_dir(folder, dataset_type=fiftyone.types.FiftyOneDataset)`` reads (https://docs.voxel51.com/user_guide/import_datasets.html).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import to_bytes
from lightning_failures.writers.csv import safe_cell

LABEL_STUDIO_FILE = "label_studio.json"
LABEL_STUDIO_CONFIG = "label_studio.xml"
CSV_FILE = "images.csv"
FIFTYONE_FILE = "fiftyone/samples.json"
LABELLING_FILES = (CSV_FILE, LABEL_STUDIO_FILE, FIFTYONE_FILE)
"""Files that :func:`write_labelling_files` may write, within its folder."""

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LOCAL = "/data/local-files/?d="


@dataclass(frozen=True)
class ImageToLabel:
    """One image that a person should label.

    Attributes:
        id: Index of the image in its dataset.
        class_name: Its class: by its label, or a guess.
        path: Its file, a URL, or for Label Studio a data URI; None if there is none.
        is_guess: Whether the class is a guess, because the image has no label.
        decision_value: Decision value by the direction of the class; negative: predicted failure.
        caption: Caption of the pattern that the image belongs to.
        prediction: Class that the model predicts; None: not shown.
        tags: Tags of the image in FiftyOne, beside that of this package.
        facts: What else is known of the image, by name.
    """

    id: int
    class_name: str
    path: str | None = None
    is_guess: bool = False
    decision_value: float | None = None
    caption: str | None = None
    prediction: str | None = None
    tags: tuple[str, ...] = ()
    facts: Mapping[str, str | float | bool | None] = field(default_factory=dict)


def write_labelling_files(images: Sequence[ImageToLabel], folder: Path) -> list[Path]:
    """Write the files, those of the tools only if the dataset lists the files of its images; return their paths."""
    contents = {CSV_FILE: to_bytes(to_csv(images))}
    if any(image.path is not None for image in images):
        contents[LABEL_STUDIO_FILE] = json_bytes(label_studio_tasks(images))
        contents[FIFTYONE_FILE] = json_bytes(fiftyone_samples(images))
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def to_csv(images: Sequence[ImageToLabel]) -> str:
    r"""Return a table with a row for each image; no spreadsheet evaluates its texts.

    >>> print(to_csv([ImageToLabel(7, "=owl", "owls/1.png", is_guess=True, decision_value=-0.5)]), end="")
    id,path,class,guess,decision_value,caption
    7,owls/1.png,'=owl,True,-0.5,
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "path", "class", "guess", "decision_value", "caption"))
    for image in images:
        texts = (image.path, image.class_name, image.caption)
        path, name, caption = (None if one is None else safe_cell(one, guarded=True) for one in texts)
        writer.writerow((image.id, path, name, image.is_guess, image.decision_value, caption))
    return text.getvalue()


def label_studio_tasks(images: Sequence[ImageToLabel], *, pool: bool = True) -> list[dict[str, Any]]:
    """Return the images that have a file as tasks of Label Studio, with the class as a prediction.

    The labelling configuration needs ``<Image name="image" value="$image"/>`` and ``<Choices name="label"
    toName="image">``. Local files are served by Label Studio itself, from the root of the file system:
    ``LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/``.

    Args:
        images: The images.
        pool: Whether they are candidates of a pool, rather than graded examples with a label.

    >>> (task,) = label_studio_tasks([ImageToLabel(7, "owl", "/pool/an owl.png")])
    >>> task["data"]["image"], task["predictions"][0]["result"][0]["value"]
    ('/data/local-files/?d=pool/an%20owl.png', {'choices': ['owl']})
    """
    return [
        {
            "data": {"image": _served(image.path), **_about(image, pool)},
            "predictions": [
                _choice(image.class_name, "lightning_failures"),
                *([] if image.prediction is None else [_choice(image.prediction, "the model")]),
            ],
        }
        for image in images
        if image.path is not None
    ]


def label_studio_config(class_names: Sequence[str]) -> str:
    """Return the labelling configuration of a project whose tasks are those of :func:`label_studio_tasks`.

    Source: https://labelstud.io/templates/image_classification.

    >>> print(label_studio_config(["owl", "cat & dog"]))
    <View>
      <Image name="image" value="$image"/>
      <Choices name="label" toName="image">
        <Choice value="owl"/>
        <Choice value="cat &amp; dog"/>
      </Choices>
    </View>
    <BLANKLINE>
    """
    names = [_NOT_IN_XML.sub("\ufffd", name) for name in class_names]
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in names)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <Choices name="label" toName="image">\n'
        f"{choices}  </Choices>\n</View>\n"
    )


def _choice(class_name: str, source: str) -> dict[str, Any]:
    """Return a prediction of Label Studio: one choice, and what says so."""
    result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [class_name]}}
    return {"model_version": source, "result": [result]}


def fiftyone_samples(images: Sequence[ImageToLabel], *, pool: bool = True) -> dict[str, Any]:
    """Return the images that have a file as serialised samples of FiftyOne, the class as a classification.

    Args:
        images: The images.
        pool: Whether they are candidates of a pool, whose class is "suggested", rather than graded examples, whose
            class is the "ground_truth".

    >>> (sample,) = fiftyone_samples([ImageToLabel(7, "owl", "/pool/owl.png")])["samples"]
    >>> sample["filepath"], sample["suggested"]
    ('/pool/owl.png', {'_cls': 'Classification', 'label': 'owl'})
    """
    samples = [
        {
            "filepath": image.path if _is_url(image.path) else str(Path(image.path).absolute()),
            "tags": ["lightning_failures", *image.tags],
            "suggested" if pool else "ground_truth": _classification(image.class_name),
            **({} if image.prediction is None else {"prediction": _classification(image.prediction)}),
            **_about(image, pool),
        }
        for image in images
        if image.path is not None
    ]
    return {"samples": samples}


def _classification(label: str) -> dict[str, str]:
    return {"_cls": "Classification", "label": label}


def _about(image: ImageToLabel, pool: bool) -> dict[str, Any]:
    """Return what is known of an image beside its file and its class."""
    values: dict[str, Any] = {"pool_id": image.id, "guess": image.is_guess} if pool else {"example_id": image.id}
    values["decision_value"] = image.decision_value
    return values | ({} if image.caption is None else {"pattern": image.caption}) | dict(image.facts)


def _served(path: str) -> str:
    """Return the address at which Label Studio finds an image."""
    return (
        path
        if _is_url(path)
        else _LOCAL + quote(Path(path).absolute().as_posix().lstrip("/"), errors="surrogateescape")
    )


def _is_url(path: str) -> bool:
    return "://" in path or path.startswith("data:")


def json_bytes(content: Any) -> bytes:
    """Return the content of a JSON file; names may hold bytes that are not UTF-8."""
    return to_bytes(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
