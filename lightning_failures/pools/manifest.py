"""What a folder of shards holds: which pool, which encoder, which blocks of ids."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import xxhash

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.serialization import from_jsonable, read_json
from lightning_failures.errors import ConfigurationError, DataError

_NAME = "manifest.json"
_DEFINING = {
    "encoder": "the encoder",
    "examples": "the number of examples",
    "sample": "the images, or their transform",
    "image_space": "the normalisation of the images",
    "shard_size": "the shard size",
}


@dataclass(frozen=True)
class PoolManifest:
    """A pool, cut into blocks of ``shard_size`` consecutive ids, whatever the number of processes that embed it.

    Attributes:
        encoder: Fingerprint of the encoder.
        encoder_name: Name of the encoder.
        examples: Number of examples of the pool.
        shard_size: Examples in a shard; the last shard may have fewer.
        image_space: The normalisation that is undone before an image is encoded.
        sample: Content keys of a few images, "" for one that cannot be embedded; empty if the transform is random, so
            that keys differ at each read.
        schema: Version of the format.

    >>> pool = PoolManifest("f00d", "an encoder", examples=10, shard_size=4)
    >>> pool.shards, pool.block(2), pool.path(Path("out"), 2).name
    (3, range(8, 10), 'shard-0000002.safetensors')
    """

    encoder: str
    encoder_name: str
    examples: int
    shard_size: int
    image_space: str = ""
    sample: tuple[str, ...] = ()
    schema: int = 1

    def __post_init__(self) -> None:
        if min(self.examples, self.shard_size) < 1 or self.schema != 1:
            raise DataError(
                f"examples and shard_size must be >= 1 and schema must be 1;"
                f" got {self.examples}, {self.shard_size} and {self.schema}"
            )

    @property
    def shards(self) -> int:
        """Number of shards of the pool."""
        return -(-self.examples // self.shard_size)

    @property
    def digest(self) -> str:
        """32 hex digits over everything that a shard depends on."""
        about = [self.schema, *(getattr(self, name) for name in _DEFINING)]
        return xxhash.xxh3_128_hexdigest(json.dumps(about).encode())

    def block(self, number: int) -> range:
        """Return the ids of a shard."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, self.examples))

    def path(self, folder: Path, number: int) -> Path:
        """Return the path of a shard."""
        return folder / "shards" / f"shard-{number:07d}.safetensors"

    @classmethod
    def load(cls, folder: Path) -> PoolManifest | None:
        """Read the manifest of a folder; return None if the folder has none.

        Raises:
            DataError: The manifest is damaged.
        """
        path = folder / _NAME
        if not path.is_file():
            return None
        try:
            return from_jsonable(cls, read_json(path.read_bytes()))
        except DataError as error:
            raise DataError(f"{path} is damaged: {error}. Remove it; the shards are then verified.") from error

    def claim(self, folder: Path) -> PoolManifest:
        """Assign the folder to this pool by writing the manifest, unless it already has one; return its manifest.

        Raises:
            ConfigurationError: The folder belongs to another pool.
        """
        found = PoolManifest.load(folder)
        differing = [] if found is None else [text for name, text in _DEFINING.items() if not self._same(found, name)]
        if found is not None and differing:
            raise ConfigurationError(
                f"{folder} holds another pool, or the same pool seen by another encoder: {', '.join(differing)} differ"
                f" ({found.examples} examples, shards of {found.shard_size}, encoder {found.encoder_name};"
                f" now {self.examples}, {self.shard_size}, {self.encoder_name})."
                " Give another --output, or remove that folder."
            )
        if found is not None:
            return found
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        write_atomically(folder / _NAME, text.encode())
        return self

    def _same(self, other: PoolManifest, name: str) -> bool:
        """Return whether a field is the same; an image that could not be embedded at one time may be any at another."""
        if name == "sample" and len(self.sample) == len(other.sample):
            return all(a == b or not a or not b for a, b in zip(self.sample, other.sample, strict=True))
        return bool(getattr(self, name) == getattr(other, name))


def default_shard_size(examples: int, batch_size: int) -> int:
    """Return the default number of examples in a shard, for about 256 shards of 256 to 8,192, in whole batches.

    >>> default_shard_size(2_000, 64), default_shard_size(20_000_000, 100)
    (256, 8200)
    """
    wanted = min(max(-(-examples // 256), 256), 8192)
    return -(-wanted // batch_size) * batch_size
