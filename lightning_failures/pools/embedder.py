"""The module that ``Trainer.predict`` runs to embed a pool."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lightning_failures.core.locks import LockingUnsupportedError, claim, release
from lightning_failures.core.rng import isolated_rng
from lightning_failures.core.safetensors_io import DamagedShardError
from lightning_failures.encoders import Encoder, load_encoder
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.pools.job import PoolJob, ShardWriter, writing
from lightning_failures.pools.manifest import PoolManifest, default_shard_size
from lightning_failures.pools.probe import probe_pool
from lightning_failures.pools.results import clear_results, resolve_class_names, write_results
from lightning_failures.pools.shards import (
    POOL_UNLABELLED,
    directions_digest,
    read_pool_shard,
    score_shard,
    write_pool_shard,
)
from lightning_failures.pools.source import batch_size_of, blocks_loader
from lightning_failures.trainer.batch_transfer import BatchTransfer
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.readable import Unreadable, tried


def run_job(trainer: Trainer, job: PoolJob) -> None:
    """Embed the remaining shards of a pool with the strategy of the Trainer, then write the results."""
    with warnings.catch_warnings():
        # raised if fewer shards remain than there are processes
        warnings.filterwarnings("ignore", "Total length of `DataLoader` across ranks is zero")
        try:
            trainer.predict(PoolEmbedder(job), return_predictions=False)
        finally:
            release(trainer)


class PoolEmbedder(LightningModule):
    """Embeds and scores the missing shards. It has no parameters, so any strategy can run it.

    The pool is cut into fixed blocks of ids, and the remaining blocks are divided among the processes. Batches do not
    cross the borders of a block, so a shard has the same bytes whichever process writes it.

    An error in one process ends it, and Lightning then ends the others. Finished shards stay on disk, and the next run
    resumes.

    Args:
        job: What to do.
    """

    def __init__(self, job: PoolJob) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.prepare_data_per_node = job.source.owner.prepare_data_per_node
        # inside plain objects, so that neither the user's module nor the encoder becomes a submodule of this one
        self._job = job
        self._ranks = Communicator()
        self._writer: ShardWriter | None = None
        self._names: Sequence[str] = ()
        self._dataset: Any = None

    def prepare_data(self) -> None:
        """Call the user's hook."""
        self._job.source.owner.prepare_data()

    def setup(self, stage: str) -> None:
        """Connect the processes and call the user's hook."""
        self._ranks.open()
        self._job.source.begin(self.trainer)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the blocks that this process must embed."""
        job, ranks = self._job, self._ranks
        loader = self._ranks.run_all(job.source.loader)
        names = self._ranks.run_all(lambda: resolve_class_names(job.class_names, loader.dataset, job.fitted))
        encoder = self._ranks.run_all(self._load_encoder)
        claimed = self._ranks.run_all(lambda: self._claim(loader, encoder) if ranks.is_first else None)
        claimed = ranks.broadcast(claimed)
        assert claimed is not None
        manifest, channels = claimed
        self._ranks.run_all(lambda: self._check_same(loader, manifest, encoder))
        remaining = self._remaining(manifest)
        blocks = blocks_loader(loader, [manifest.block(number) for number in remaining[ranks.rank :: ranks.world_size]])
        self._writer = ShardWriter(job, manifest, encoder, loader.dataset, channels, iter(blocks.sampler))
        self._names = names
        self._dataset = loader.dataset
        return blocks

    def on_before_batch_transfer(self, parts: Any, dataloader_idx: int) -> Any:
        """Call the user's hook with each batch."""
        return self._each("on_before_batch_transfer", parts, dataloader_idx)

    def transfer_batch_to_device(self, parts: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Call the user's hook with each batch."""
        return self._each("transfer_batch_to_device", parts, device, dataloader_idx)

    def on_after_batch_transfer(self, parts: Any, dataloader_idx: int) -> Any:
        """Call the user's hook with each batch."""
        return self._each("on_after_batch_transfer", parts, dataloader_idx)

    def predict_step(self, parts: Any, batch_idx: int) -> int:
        """Embed the next batches, write their shard if that is complete, and return the number of examples."""
        assert self._writer is not None
        return self._writer.take(parts)

    def on_predict_end(self) -> None:
        """Write the last shards."""
        if self._writer is not None:
            self._writer.finish()

    def teardown(self, stage: str) -> None:
        """Wait until all processes have written their shards; then the first process writes the results."""
        self._ranks.raise_if_any(None)
        writer, self._writer = self._writer, None
        if writer is not None:
            self._ranks.run_all(lambda: self._write_results(writer.manifest) if self._ranks.is_first else None)
        self._ranks.close()
        self._job.source.end()

    def _each(self, name: str, parts: Any, *args: Any) -> list[tuple[list[int], Any]]:
        """Return the parts of a read, pairs of ids and a batch, after one of the user's hooks."""
        hook = self._job.source.hook(name)
        moved = []
        for ids, batch in parts:
            work = partial(hook, batch, *args)
            if isinstance(batch, Unreadable):
                moved.append((ids, batch))
            else:  # an error of the device is not the fault of an example
                moved.append((ids, work() if name == "transfer_batch_to_device" else tried(ids, work)))
        return moved

    def _transfer(self, batch: Any) -> Any:
        """Return a batch that was read outside of the loop as the user's hooks hand it over."""
        ((_, moved),) = BatchTransfer(self.trainer)(
            [([0, 1], batch)]
        )  # as of several examples, whose errors are raised
        return moved

    def _load_encoder(self) -> Encoder:
        """Load the encoder and check that the directions were fitted to its embeddings.

        Raises:
            ConfigurationError: They were fitted to embeddings of another encoder.
        """
        device = self.trainer.strategy.root_device if self._job.device is None else torch.device(self._job.device)
        with isolated_rng():
            encoder = load_encoder(self._job.encoder, device=device)
        fitted = self._job.fitted
        if fitted is not None and fitted.encoder not in (None, encoder.fingerprint):
            raise ConfigurationError(
                f"{fitted.path} was fitted to embeddings of encoder {fitted.encoder}, not of"
                f" {encoder.name} ({encoder.fingerprint}). Use the encoder of that run, or other --directions."
            )
        if fitted is not None and fitted.directions.mean.numel() != encoder.dim:
            raise ConfigurationError(
                f"{fitted.path} was fitted to embeddings of {fitted.directions.mean.numel()} dimensions;"
                f" {encoder.name} returns {encoder.dim}. Use the encoder of that run, or other --directions."
            )
        return encoder

    def _claim(self, loader: DataLoader[Any], encoder: Encoder) -> tuple[PoolManifest, int | None]:
        """Write the manifest and remove old results; called in the first process only.

        Returns:
            The manifest, and the number of channels that images must have, or None.
        """
        job, examples = self._job, len(loader.dataset)  # type: ignore[arg-type]
        self._claim_folder()
        shops = job.shop is not None
        scored = job.directions is not None and not shops
        probe = probe_pool(loader, job.reader, self._transfer, task=job.task, scored=scored, labelled=not shops)
        if not probe.sample:
            rank_zero_warn(
                "Reading an image of the pool twice gave different pixels, so its transform is random, and a later run"
                " cannot check whether the images are still the same. Use a deterministic transform for a pool."
            )
        found = PoolManifest.load(job.folder)
        size = job.shard_size or (found.shard_size if found else default_shard_size(examples, batch_size_of(loader)))
        manifest = PoolManifest(
            encoder=encoder.fingerprint,
            encoder_name=encoder.name,
            examples=examples,
            shard_size=size,
            image_space=repr(job.reader.space(loader.dataset)),
            sample=probe.sample,
        )
        with writing(job.folder):
            manifest = manifest.claim(job.folder)
            clear_results(job.folder, scored=job.directions is not None)
        return manifest, probe.channels

    def _claim_folder(self) -> None:
        """Claim the folder of the pool, so that no other command writes there meanwhile.

        Raises:
            ConfigurationError: Another command writes there.
        """
        folder = self._job.folder
        with writing(folder):
            try:
                is_free = claim(folder, self.trainer)
            except LockingUnsupportedError as error:
                rank_zero_warn(
                    f"{folder} cannot be locked ({error.strerror or error}), so another `embed` that writes there would"
                    " go unnoticed. Run one at a time."
                )
                return
        if not is_free:
            raise ConfigurationError(
                f"Another `embed` is writing to {folder}. Wait until it has ended (finished shards are not embedded"
                " again), or give another --output."
            )

    def _check_same(self, loader: DataLoader[Any], manifest: PoolManifest, encoder: Encoder) -> None:
        """Check that this process has the same folder, pool and encoder as the first process.

        Raises:
            ConfigurationError: The folder differs.
            DataError: The pool or the encoder differs.
        """
        if PoolManifest.load(self._job.folder) != manifest:
            raise ConfigurationError(
                f"{self._job.folder} of process {self._ranks.rank} is not that of the first process. On several"
                " nodes, --output must be a folder that all of them share."
            )
        examples = len(loader.dataset)  # type: ignore[arg-type]
        if (examples, encoder.fingerprint) != (manifest.examples, manifest.encoder):
            raise DataError(
                f"The first process has a pool of {manifest.examples} examples and encoder {manifest.encoder}, but"
                f" process {self._ranks.rank} {examples} and {encoder.fingerprint}. They must be the same."
            )

    def _remaining(self, manifest: PoolManifest) -> list[int]:
        """Return the numbers of the shards to write, the same in every process.

        Existing shards are verified, each by one process. Collective.
        """
        folder, ranks = self._job.folder, self._ranks
        present = ranks.broadcast([n for n in range(manifest.shards) if manifest.path(folder, n).is_file()])
        mine = present[ranks.rank :: ranks.world_size]
        whole = self._ranks.run_all(lambda: [number for number in mine if self._is_done(manifest, number)])
        done = {number for part in ranks.gather_objects(whole) for number in part}
        if present:
            n_redone = len(present) - len(done)
            redone = f"; {n_redone} more are damaged or incomplete and are written again" if n_redone else ""
            rank_zero_info(f"{len(done)} of {manifest.shards} shards are complete{redone}.")
        return [number for number in range(manifest.shards) if number not in done]

    def _is_done(self, manifest: PoolManifest, number: int) -> bool:
        """Return whether an existing shard is complete; score it if its directions are not those of the job."""
        job = self._job
        path = manifest.path(job.folder, number)
        try:
            shard = read_pool_shard(path, manifest.block(number), pool=manifest.digest)
        except (OSError, DamagedShardError):
            return False
        if job.keep_embeddings and shard.embeddings is None:
            return False
        if job.directions is None or shard.directions == directions_digest(job.directions):
            return True
        if shard.embeddings is None:
            return False
        if job.shop is None and len(shard) and bool((shard.labels == POOL_UNLABELLED).all()):
            return False
        with writing(job.folder):
            write_pool_shard(score_shard(shard, job.directions), path, pool=manifest.digest)
        return True

    def _write_results(self, manifest: PoolManifest) -> None:
        """Write and print the results; called in the first process only."""
        limit = self.trainer.limit_predict_batches
        write_results(
            manifest,
            self._job.folder,
            fitted=self._job.fitted,
            k=self._job.k,
            shop=self._job.shop,
            names=self._names,
            dataset=self._dataset,
            limited=isinstance(limit, int) or limit < 1.0,
            patience=60.0 if self.trainer.num_nodes > 1 else 0.0,
        )
