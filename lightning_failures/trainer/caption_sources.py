"""Where the candidate captions of the classes of an analysis come from: a vocabulary, or captions of the examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lightning_failures.captions.candidates import ClassCaptions, attribute_source, caption_source
from lightning_failures.captions.captioned import captioned_source
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.captions.image_to_text import Captioner
from lightning_failures.captions.recognised import RecognisedVocabulary, recognised
from lightning_failures.core.budget import Deadline
from lightning_failures.data.grades import Grades
from lightning_failures.encoders import gives_texts
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.trainer.example_reader import ExampleReader
from lightning_failures.trainer.grader import Grader

Captions = Callable[[int], ClassCaptions | None]
"""Returns the embedded candidate captions of a class, by its index, or None."""


@dataclass(frozen=True)
class CaptionSources:
    """Gives the candidate captions of analyses, which are embedded once.

    Attributes:
        encoder: The encoder of the failure directions, or None.
        vocabulary: Words for captions, or None.
        captioner: Describes the images whose words are the candidates instead, or None.
        seed: Seed of the sample of images that are described.
        say_once: Emits each distinct message at most once.
    """

    encoder: CachedEncoder | None
    vocabulary: CaptionVocabulary | None
    captioner: Captioner | None
    seed: int
    say_once: Callable[..., None]
    _known: dict[str, ClassCaptions] = field(default_factory=dict)
    _attributes: dict[str, ClassCaptions] = field(default_factory=dict)
    _described: dict[int, dict[int, str]] = field(default_factory=dict)  # captions of images, by loader and id

    def __call__(self, class_names: tuple[str, ...], *, has_names: bool) -> Captions | None:
        """Return the source of captions for these classes; None, with one message, if there are no captions.

        From a captioner, these are the candidates of the last analysis.
        """
        if self.encoder is None or self.vocabulary is None:
            return None
        encoder = self.encoder.encoder
        if not gives_texts(encoder):
            self.say_once(f"Encoder {encoder.name} has no text tower; captions are disabled.", rank_zero_info)
            return None
        if not has_names:
            self.say_once("Classes have no names (class_names=None, no dataset.classes); captions are disabled.")
            return None
        if self.captioner is not None:
            return lambda k: self._known.get(class_names[k])
        if isinstance(self.vocabulary, RecognisedVocabulary):
            self.say_once(f"captions='auto': the vocabulary is {recognised(class_names)!r}.", rank_zero_info)
        return caption_source(self.encoder, self.vocabulary, class_names, self._known)

    def attributes(self, class_names: tuple[str, ...]) -> Captions | None:
        """Return the source of the captions of classes that name one attribute each; None without a vocabulary."""
        if self.encoder is None or self.vocabulary is None:
            return None
        return attribute_source(self.encoder, self.vocabulary, class_names, self._attributes)

    def of_analysis(
        self,
        grades: Grades,
        sampled: NDArray[np.bool_],
        grader: Grader,
        index: int,
        examples: Callable[[], ExampleReader],
        deadline: Deadline | None,
    ) -> Captions | None:
        """Return the source of captions for an analysis; None, with one message, if there are no captions.

        Args:
            grades: Its N rows.
            sampled: (N,) bool, the rows that directions are fitted on.
            grader: The grader of the examples.
            index: Index of the loader.
            examples: Returns the reader of the examples.
            deadline: When no more images are described.
        """
        source = self(grades.class_names, has_names=grader.has_names)
        if source is None or self.captioner is None or self.encoder is None:
            return source
        if not grader.indexed:
            self.say_once(
                "The ids of the examples are not the indices of the dataset, so that images cannot be read again for a"
                " captioner; captions are disabled."
            )
            return None
        return captioned_source(
            self.encoder,
            self.captioner,
            grades,
            lambda ids: examples().images(ids),
            sampled=sampled,
            deadline=deadline,
            seed=self.seed,
            described=self._described.setdefault(index, {}),
            known=self._known,
        )
