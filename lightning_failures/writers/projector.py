"""TensorBoard's projector: the embeddings of some examples as points, with thumbnails and what is known of each.

The files are written here and not by ``SummaryWriter.add_embedding``, which adds to a run at every step and never takes
anything away, breaks where a name holds a tab or a line break, and prints where a folder is there already.
"""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import clean
from lightning_failures.report.example_rows import ExampleRow
from lightning_failures.report.gallery import Thumbnails
from lightning_failures.report.gallery_storage import to_png

FOLDER = "failures_projector"
CONFIG = "projector_config.pbtxt"
TENSORS, METADATA, SPRITE = "tensors.tsv", "metadata.tsv", "sprite.png"
KEPT = 2
"""Analyses whose points stay: a TensorBoard that is running goes on reading the files that it found when it began."""

COLUMNS = ("label", "id", "prediction", "right", "confidence", "decision value", "flagged", "leaf")
"""The first of text is what TensorBoard writes beside a point."""


def write_projector(writer: Any, tag: str, step: int, rows: Sequence[ExampleRow], thumbnails: Thumbnails) -> None:
    """Put points into a run in the place of those that it has under the same tag. Those of others stay.

    Args:
        writer: A ``SummaryWriter``, of a folder on this machine: elsewhere nothing is written.
        tag: What the points are.
        step: Of the training.
        rows: n, one a thumbnail.
        thumbnails: n, with embeddings (n, D). Those that have none, which are not finite, are left out.
    """
    if thumbnails.embeddings is None or "://" in str(writer.log_dir):
        return
    known = torch.isfinite(thumbnails.embeddings).all(1)
    if not known.any():
        return
    embeddings, images = thumbnails.embeddings[known], thumbnails.images[known]
    log_dir = Path(writer.log_dir)
    here = log_dir / FOLDER / tag.replace("/", "-") / f"{step:08d}"
    write_atomically(here / TENSORS, _tensors(embeddings))
    write_atomically(here / METADATA, metadata_tsv(list(compress(rows, known.tolist()))))
    write_atomically(here / SPRITE, sprite(images))
    _register(writer, tag, step, here.relative_to(log_dir).as_posix(), (*embeddings.shape, *images.shape[2:]))
    others = sorted((one for one in here.parent.iterdir() if one != here), key=lambda one: one.stat().st_mtime)
    for old in others[: -(KEPT - 1)]:
        shutil.rmtree(old, ignore_errors=True)


def _register(writer: Any, tag: str, step: int, folder: str, sizes: tuple[int, ...]) -> None:
    """Name the files in the configuration of the run, which is of all its points."""
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

    n, dim, height, width = sizes
    info = EmbeddingInfo(
        tensor_name=f"{tag}:{step:05d}",  # another name for other points, or TensorBoard shows those that it remembers
        tensor_path=f"{folder}/{TENSORS}",
        tensor_shape=[n, dim],
        metadata_path=f"{folder}/{METADATA}",
    )
    info.sprite.image_path = f"{folder}/{SPRITE}"
    info.sprite.single_image_dim.extend([width, height])
    path = Path(writer.log_dir) / CONFIG
    config = _config(path, ProjectorConfig)
    others = [one for one in config.embeddings if not one.tensor_name.startswith(f"{tag}:")]
    del config.embeddings[:]
    config.embeddings.extend([*others, info])
    write_atomically(path, text_format.MessageToString(config).encode())
    writer._projector_config = config  # from which add_embedding writes the file anew


def _config(path: Path, kind: Any) -> Any:
    """What a run has already; nothing where the file is none that TensorBoard could read."""
    from google.protobuf import text_format

    try:
        return text_format.Parse(path.read_text(), kind())
    except (FileNotFoundError, UnicodeDecodeError, text_format.ParseError):
        return kind()


def _tensors(embeddings: Tensor) -> bytes:
    """(n, D) float32 as lines of numbers."""
    text = io.BytesIO()
    np.savetxt(text, embeddings.numpy(), fmt="%.6g", delimiter="\t")
    return text.getvalue()


def metadata_tsv(rows: Sequence[ExampleRow]) -> bytes:
    r"""A line for each point below the names of the columns; no text can break a line or a cell.

    >>> metadata_tsv([ExampleRow(7, "a\tb", "c\nd", False, 0.25, None, None, None)]).splitlines()[1]
    b'a b\t7\tc d\tno\t0.25\t\t\t'
    """
    return "".join("\t".join(cells) + "\n" for cells in (COLUMNS, *map(_cells, rows))).encode()


def _cells(row: ExampleRow) -> tuple[str, ...]:
    """An undefined one is empty, which TensorBoard takes for unknown."""
    return (
        clean(row.label),
        str(row.id),
        clean(row.prediction),
        "yes" if row.right else "no",
        f"{row.confidence:.4g}",
        "" if row.decision_value is None else f"{row.decision_value:.4g}",
        "" if row.flagged is None else "yes" if row.flagged else "no",
        "" if row.leaf is None else clean(f"{row.label}: {row.leaf}"),
    )


def sprite(images: Tensor) -> bytes:
    """All thumbnails in one square PNG, row by row: (n, 3, s, s) uint8.

    >>> from PIL import Image
    >>> Image.open(io.BytesIO(sprite(torch.zeros(5, 3, 8, 8, dtype=torch.uint8)))).size
    (24, 24)
    """
    n, _, height, width = images.shape
    side = math.isqrt(n - 1) + 1
    grid = torch.zeros(side * side, 3, height, width, dtype=torch.uint8)
    grid[:n] = images
    # (side, side, 3, h, w) -> (3, side, h, side, w) -> (3, H, W)
    grid = grid.view(side, side, 3, height, width).permute(2, 0, 3, 1, 4)
    return to_png(grid.reshape(3, side * height, side * width))
