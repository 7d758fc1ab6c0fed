"""AddSynthetic adds images generated from failure modes, by caption or by direction, to the training set.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, figure 9, and appendix A.6 for
decoded directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.core.budget import PROGRESS_DELAY
from lightning_failures.data.digests import image_digests
from lightning_failures.data.report import FailureReport
from lightning_failures.directions.decoding import decoding_targets
from lightning_failures.directions.fit import fit_failure_directions
from lightning_failures.encoders.base import Encoder, gives_texts
from lightning_failures.errors import ConfigurationError, GeneratorError
from lightning_failures.generators.base import EmbeddingDecoder, ImageGenerator, takes_embeddings
from lightning_failures.generators.load import load_generator
from lightning_failures.interventions.base import (
    LEFT_OUT,
    Decision,
    Intervention,
    JudgedExamples,
    Round,
    is_number,
)
from lightning_failures.interventions.selection.near_duplicates import rows_near, usual_similarity
from lightning_failures.interventions.synthesis.dataset import ItemForm, SyntheticImages, as_pil, item_form
from lightning_failures.interventions.synthesis.generate import IN_VALIDATION, Order, SynthesisResult, synthesize
from lightning_failures.interventions.synthesis.ledger import Ledger, left_out_sentence

Prompt = Literal["hard", "reference", "easy", "direction", "direction_reference", "direction_easy"]
"""What images are generated from; see :class:`AddSynthetic`."""

_DESCRIPTIONS: dict[str, str] = {
    "hard": "hard caption",
    "reference": "reference caption",
    "easy": "easy caption",
    "direction": "hard direction, decoded at {alpha:g} of the arc",
    "direction_reference": "reference caption, decoded",
    "direction_easy": "easy direction, decoded at {alpha:g} of the arc",
}
_HARD = ("hard", "direction")
_SIMILARITY = 0.995


class AddSynthetic(Intervention):
    """Adds generated images of the failure mode of each class to the training set.

    A class without a pattern gets no images. The first process generates images after a validation, before training
    resumes, and then releases the generator. Every image is checked: black or constant images, images of another size
    than the first, near copies of each other or of an image of the validation set and, for the hard prompts, images
    that are not hard by the direction of their class are dropped, and the report counts them by reason. All images are
    listed in a ledger (``ledger.jsonl``, with model, licence, prompt, seed, class, direction and epoch; every PNG
    contains the same values) in the folder of the intervention, and
    ``lightning_failures.interventions.synthesis.ledger.purge`` removes them. A run that was killed resumes from the
    ledger.

    An epoch keeps its length, so an added image is drawn as often as any other example, and all are drawn a little less
    often than before.

    Departures from the paper: classes whose p-value does not survive Benjamini-Hochberg get no images; images that are
    not hard are dropped (``only_hard=False`` keeps them); their number is capped as a share of the real images, since
    too many hurt.

    Args:
        generator: ``"embedded:digits"``, a folder or hub id of a diffusers pipeline, a generator such as
            :class:`~lightning_failures.generators.DiffusersGenerator`, or a function ``(prompts, seeds) -> images``.
        per_class: Number of images of each class in a decision.
        prompt: ``"hard"``, the caption nearest to failure; for comparison ``"reference"``, the caption of the class
            alone, or ``"easy"``, the caption nearest to success. ``"direction"`` decodes a point between the embedding
            of the reference caption and -w, without a caption, ``"direction_easy"`` a point towards +w,
            ``"direction_reference"`` the reference itself; these need a decoder for the encoder of the directions,
            which are refitted without whitening.
        max_share: Maximum number of images of a class as a share of its real images, in (0, 1].
        candidates: Maximum number of images generated for each wanted one.
        only_hard: Drop images whose decision value is not negative; for ``"hard"`` and ``"direction"`` only.
        keep: Keep images of earlier decisions, the latest first, up to ``max_share``; otherwise those of a new decision
            replace them.
        similarity: Cosine of embeddings above which an image counts as a copy of an image of the validation set; 1
            drops exact copies only. None: 0.995, or more if more than 1 % of the validation images are that similar to
            another one.
        alpha: Distance of a decoded point from the reference, as a fraction of the arc.
        head_only: Train only the last linear or convolutional layer, as the paper does, or the submodule of this name,
            in epochs with added images.
        local_files_only: Do not access the hub.
        device: Device of a generator given by name; default: an accelerator if there is one (the CPU for
            ``"embedded:digits"``).
        batch_size: Number of images generated at once.
        transform: From a PIL image, or a uint8 or [0, 1] tensor (3, H, W), to the input of the model. Default: the
            ``transform`` of the training set.
        make_item: ``(PIL image, label) -> training example``, for training sets whose examples are neither
            (image, label) nor mappings with an image and a label alone.
        **schedule: When it acts: ``start_epoch``, ``every_n_epochs``, ``stop_epoch``, ``dry_run`` and ``grow_epoch`` of
            :class:`~lightning_failures.interventions.Intervention`.

    Raises:
        ConfigurationError: An option outside its range.

    >>> AddSynthetic("embedded:digits", per_class=50).prompt
    'hard'
    """

    def __init__(
        self,
        generator: str | ImageGenerator | Callable[[Sequence[str], Sequence[int]], Any],
        per_class: int = 100,
        *,
        prompt: Prompt = "hard",
        max_share: float = 0.2,
        candidates: int = 3,
        only_hard: bool = True,
        keep: bool = False,
        similarity: float | None = None,
        alpha: float = 0.2,
        head_only: bool | str = False,
        local_files_only: bool = False,
        device: str | None = None,
        batch_size: int = 8,
        transform: Callable[[Any], Any] | None = None,
        make_item: Callable[[Any, int], Any] | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        self.generator = generator
        self.per_class = per_class
        self.prompt: Prompt = prompt
        self.max_share = max_share
        self.candidates = candidates
        self.only_hard = only_hard
        self.keep = keep
        self.similarity = similarity
        self.alpha = alpha
        self.head_only = head_only
        self.local_files_only = local_files_only
        self.device = device
        self.batch_size = batch_size
        self.transform = transform
        self.make_item = make_item
        self._form: ItemForm | None = None
        known = isinstance(generator, str | ImageGenerator) or callable(generator)
        self._check("generator", known, "a name, a generator, or a function (prompts, seeds) -> images")
        self._check("prompt", prompt in get_args(Prompt), f"one of {', '.join(get_args(Prompt))}")
        for name in ("per_class", "candidates", "batch_size"):
            value = getattr(self, name)
            self._check(name, isinstance(value, int) and value >= 1, "an integer >= 1")
        for name in ("max_share", "alpha"):
            self._check(name, is_number(getattr(self, name)) and 0 < getattr(self, name) <= 1, "a share in (0, 1]")
        is_cosine = similarity is None or (is_number(similarity) and 0 < similarity <= 1)
        self._check("similarity", is_cosine, "a cosine in (0, 1], or None")
        for name in ("transform", "make_item"):
            value = getattr(self, name)
            self._check(name, value is None or callable(value), "a function, or None")
        self._check("make_item", make_item is None or transform is None, "None where there is a transform")
        if self._decodes and not isinstance(generator, str):
            able = isinstance(generator, EmbeddingDecoder)
            self._check("generator", able, f"one that decodes embeddings, for prompt={prompt!r}")

    @property
    def _decodes(self) -> bool:
        return self.prompt.startswith("direction")

    def prepare(self) -> None:
        """Find the generator, and download it if necessary, without loading it.

        Raises:
            GeneratorError: The generator is not available.
        """
        if self._decodes and isinstance(self.generator, str) and not self.generator.startswith("embedded:"):
            from lightning_failures.generators.pipelines import find_pipeline

            find_pipeline(self.generator, local_files_only=self.local_files_only, decodes=True)
        else:
            self._load(None)

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise an error for an encoder without a text tower, or one that the generator does not decode.

        Raises:
            ConfigurationError: The encoder has no text tower.
            GeneratorError: The generator decodes the embeddings of another encoder, if that is known before loading.
        """
        if self.prompt != "reference" and not gives_texts(encoder):
            raise ConfigurationError(
                f"AddSynthetic(prompt={self.prompt!r}) needs an encoder that embeds captions, like a CLIP, and"
                f" {encoder.name} does not. Name another, or use prompt='reference'."
            )
        if self._decodes:
            generator = self._load(encoder)
            if not takes_embeddings(generator) or generator.encoder_fingerprint != encoder.fingerprint:
                raise GeneratorError(
                    f"{generator.name} decodes the embeddings of another encoder than {encoder.name}, which the"
                    " directions are fitted in. Name its own as encoder of FailureModes, or use captions"
                    " (prompt='hard')."
                )

    def source(self, training_set: Any, folder: Path) -> SyntheticImages:
        """Return the generated images, in the form of the examples of the training set.

        Some training examples are read to find their form; random transforms draw from the global generators.

        Raises:
            ConfigurationError: The form is not supported, or existing images do not have it.
        """
        if self.make_item is not None:
            return SyntheticImages(folder, self.make_item)
        self._form = item_form(training_set, self.transform)
        images = SyntheticImages(folder, self._form)
        usable = np.setdiff1d(np.arange(len(images)), images.unusable)
        if len(usable):
            images[usable[-1]]
        return images

    def decide(self, examples: JudgedExamples, round: Round) -> Decision:
        """Generate images for the classes with a pattern.

        Raises:
            GeneratorError: Images cannot be generated or saved; earlier images stay in the ledger.
            ConfigurationError: Images do not fit the training set, directions cannot be decoded, or the processes do
                not share a log folder.
        """
        # which classes get images, and how many
        sizes = np.bincount(examples.labels[examples.labels != LEFT_OUT], minlength=len(examples.class_names))
        room = [int(self.max_share * size) for size in sizes]
        reasons = [
            reason or self._reason_for_none(round.report, k, room[k]) for k, reason in enumerate(examples.reasons)
        ]
        orders = [
            self._order(k, examples.class_names[k], self._caption(round.report, k) or "", room[k])
            for k, reason in enumerate(reasons)
            if reason is None
        ]
        results, images, left_out = round.on_first(lambda: self._make(orders, round, room))

        # entries of the report
        entries = []
        for k, name in enumerate(examples.class_names):
            entry: dict[str, Any] = {"class": name, "examples": int(sizes[k]), "added": len(images[k])}
            result = results.get(k)
            if result is not None:
                entry |= {
                    "prompt": self._caption(round.report, k),
                    "made": result.made,
                    "reused": result.reused,
                    "dropped": dict(result.dropped),
                    "unsafe": result.unsafe,
                }
            entries.append(entry | {"reason": reasons[k] if result is None else self._shortfall(result, room[k])})
        added = np.array([image for k in sorted(images) for image in images[k]], dtype=np.int64)
        _check_shared_folder(added, round.folder)
        leaked = sum(result.dropped[IN_VALIDATION] for result in results.values())
        note = (
            f"AddSynthetic dropped {leaked} generated {'image' if leaked == 1 else 'images'} that are, or nearly are,"
            " images of the validation set."
        )
        notes = (*((note,) if leaked else ()), *((left_out,) if left_out else ()))
        return Decision(np.ones(len(examples.labels)), tuple(entries), added=added, notes=notes)

    # -- prompts and orders -------------------------------------------------------------------------------------

    def _caption(self, report: FailureReport, k: int) -> str | None:
        """Return the hardest, the easiest or the reference caption of class k."""
        entry = report.classes[k]
        if self.prompt in ("hard", "easy"):
            captions = entry.hardest_captions if self.prompt == "hard" else entry.easiest_captions
            return captions[0] if captions else None
        names = [entry.name for entry in report.classes]
        return entry.reference_caption or CaptionVocabulary().reference(entry.name, names)

    def _reason_for_none(self, report: FailureReport, k: int, room: int) -> str | None:
        """Return why no images of class k can be ordered; None if they can."""
        if self._caption(report, k) is None:
            return "no captions"
        return None if room else f"too few training examples for max_share={self.max_share:g}"

    def _order(self, k: int, name: str, caption: str, room: int) -> Order:
        """Return the order for images of class k."""
        count = min(self.per_class, room)
        return Order(
            class_index=k,
            class_name=name,
            count=count,
            limit=count * self.candidates,
            prompt=caption,
            direction=_DESCRIPTIONS[self.prompt].format(alpha=self.alpha),
            only_hard=self.only_hard and self.prompt in _HARD,
        )

    def _shortfall(self, result: SynthesisResult, room: int) -> str | None:
        """Return why a class got fewer images than ``per_class``; None if it did not."""
        wanted, kept = min(self.per_class, room), len(result.rows)
        if kept < wanted:
            counts = ", ".join(f"{count} {reason}" for reason, count in result.dropped.most_common())
            return f"{kept} of {wanted}: the others were dropped ({counts})"
        return "capped at max_share" if wanted < self.per_class else None

    # -- on the first process --------------------------------------------------------------------------------

    def _make(
        self, orders: list[Order], round: Round, room: list[int]
    ) -> tuple[dict[int, SynthesisResult], dict[int, list[int]], str | None]:
        """Fill the orders.

        Returns:
            The result of each order by class, the numbers of the images to train on by class, and a sentence on images
            of earlier decisions that are left out, None if there are none.
        """
        ledger = Ledger(round.folder)
        results: dict[int, SynthesisResult] = {}
        if orders:
            generator = self._load(round.encoder if self._decodes else None)
            check, in_validation = _SameSize(self._form), _ValidationCopies(round, self.similarity)
            bar = tqdm(
                desc="FailureModes generates images",
                total=sum(order.count for order in orders),
                delay=PROGRESS_DELAY,
                leave=False,
                disable=not round.progress,
            )
            try:
                with bar:
                    for order in self._aimed(orders, round):
                        results[order.class_index] = synthesize(
                            order,
                            generator,
                            ledger,
                            epoch=round.epoch,
                            direction_epoch=round.report.epoch,
                            seed=round.seed,
                            batch_size=self.batch_size,
                            judge=round.decision_values,
                            check=check,
                            in_validation=in_validation,
                            advance=bar.update,
                        )
            finally:
                generator.close()

        # new images, and earlier ones if they are kept
        number = {row: k for k, row in enumerate(ledger.images)}
        unusable = ledger.without_own_image
        images = {}
        for k, limit in enumerate(room):
            rows = list(results[k].rows) if k in results else []
            if self.keep:
                earlier = [
                    row
                    for row in reversed(number)
                    if ledger[row].class_index == k and ledger[row].epoch < round.epoch and row not in unusable
                ]
                rows += earlier[: max(limit - len(rows), 0)]
            images[k] = [number[row] for row in rows]
        return results, images, left_out_sentence(ledger)

    def _load(self, encoder: Encoder | None) -> ImageGenerator:
        return load_generator(
            self.generator, device=self.device, local_files_only=self.local_files_only, encoder=encoder
        )

    def _aimed(self, orders: list[Order], round: Round) -> list[Order]:
        """Return the orders, with embeddings to decode if the prompt is a direction."""
        if not self._decodes:
            return orders
        self.check_encoder(round.encoder)
        encoder = round.encoder
        assert gives_texts(encoder)
        assert round.discovery is not None  # this is the first process
        found = round.discovery
        rows = np.isin(found.labels.numpy(), [order.class_index for order in orders])
        directions = fit_failure_directions(
            found.embeddings[rows],
            found.labels[rows],
            found.correct[rows],
            ids=found.ids[rows],
            groups=None if found.groups is None else found.groups[rows],
            whiten=False,
            permutations=0,
            seed=round.seed,
        )
        aimed = []
        for order, reference in zip(orders, encoder.encode_texts([order.prompt for order in orders]), strict=True):
            weight = directions.weight[directions.row(order.class_index)]
            targets = decoding_targets(reference, weight, alpha=self.alpha)
            aim = {"direction": targets.hard, "direction_easy": targets.easy}.get(self.prompt, targets.reference)
            aimed.append(replace(order, embedding=aim))
        return aimed


def _check_shared_folder(images: NDArray[np.int64], folder: Path) -> None:
    """Raise an error if this process cannot read the images that the first process has generated.

    Raises:
        ConfigurationError: The processes do not share a log folder.
    """
    known = len(Ledger(folder).images)
    if len(images) and known <= images.max():
        raise ConfigurationError(
            f"AddSynthetic: the first process has generated {images.max() + 1} images, but this process finds {known}"
            f" in {folder}. Processes must share one log folder: give Trainer(default_root_dir=...), or the logger, a"
            " folder that all nodes see."
        )


class _ValidationCopies:
    """Finds images that are, or nearly are, images of the validation set; on the first process."""

    def __init__(self, round: Round, similarity: float | None) -> None:
        self._encoder = round.encoder
        self._embeddings = None if round.discovery is None else round.discovery.validation
        self._digests = None if round.discovery is None else round.discovery.digests
        if similarity is None:
            similarity = 1.0 if self._embeddings is None else usual_similarity(self._embeddings, least=_SIMILARITY)
        self._similarity = similarity

    def __call__(self, image: Tensor) -> bool:
        if self._digests is not None and bool(torch.isin(image_digests(image[None]), self._digests).any()):
            return True
        if self._embeddings is None:
            return False
        embedding = self._encoder.encode_images(image[None].float() / 255)
        if self._similarity == 1:  # the cache holds half precision
            embedding = embedding.half().float()
        return bool(rows_near(embedding, [self._embeddings], similarity=self._similarity).any())


class _SameSize:
    """Checks that all images of a decision have the size of the first one, and that this one fits the training set."""

    def __init__(self, form: ItemForm | None) -> None:
        self._form = form
        self._shape: tuple[int, ...] | None = None

    def __call__(self, image: Tensor) -> str | None:
        if self._shape is None:
            if self._form is not None:
                self._form(as_pil(image), 0)  # raises its error now, not in a worker in the middle of an epoch
            self._shape = tuple(image.shape)
        return None if tuple(image.shape) == self._shape else "wrong size"
