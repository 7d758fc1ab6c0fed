"""Captioners: functions from images to texts, and image-to-text models of transformers in a local folder."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.captions.recognised import AUTO, RecognisedVocabulary
from lightning_failures.captions.wordnet import WORDNET, load_wordnet_vocabulary
from lightning_failures.encoders.frozen import first_line, freeze, frozen_inference, isolated_build
from lightning_failures.errors import ConfigurationError, DataError

Captioner = Callable[[list[Image.Image]], Sequence[str]]
"""Describes images: takes at most 16 PIL images in RGB, and returns a text for each of them."""

CaptionsOption = str | Path | CaptionVocabulary | Captioner | None
"""Words of candidate captions: a vocabulary, or a captioner whose words they are."""

IMAGES_AT_ONCE = 16
"""Number of images that a captioner gets at a time."""

PREFIX = "captioner:"
"""Beginning of the name of a captioner in a folder."""

_MAX_NEW_TOKENS = 40
_FORM = (
    "Give captions='captioner:<folder>' with a folder that a BLIP, GIT or vision-encoder-decoder model of transformers"
    " and its processor were saved to (save_pretrained), as safetensors; or a function from PIL images to texts."
)


class TransformersCaptioner:
    """An image-to-text model of transformers in a local folder, loaded when the first image is captioned.

    Nothing is downloaded, weights are safetensors only, and code stored with them is never run. Captions are decoded
    greedily, so that equal images have equal captions.

    Args:
        folder: A folder with ``config.json``, weights, and the files of an image processor and a tokenizer. The model
            must caption images without a prompt.
        device: Device of the model.

    Attributes:
        name: The folder as given.

    Raises:
        ConfigurationError: transformers is not installed, or the folder does not hold such a model.
    """

    def __init__(self, folder: str | Path, *, device: str | torch.device = "cpu") -> None:
        self.name = str(folder)
        self.device = torch.device(device)
        self._folder = Path(folder).expanduser()
        _check_folder(self._folder, self.name)
        self._parts: tuple[Any, Any, Any] | None = None

    def __call__(self, images: list[Image.Image]) -> list[str]:
        """Return a caption for each image.

        Raises:
            ConfigurationError: The model cannot be loaded.
        """
        model, processor, tokenizer = self._open()
        with frozen_inference(self.device):
            pixels = processor(images=images, return_tensors="pt").pixel_values.to(self.device)
            tokens = model.generate(pixel_values=pixels, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False, num_beams=1)
        return [str(text).strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def _open(self) -> tuple[Any, Any, Any]:
        """Return the model, its image processor and its tokenizer; load them if they are not in memory."""
        if self._parts is None:
            import transformers

            kinds: Any = transformers
            local = {"local_files_only": True, "trust_remote_code": False}
            try:
                with isolated_build(), _quiet():
                    processor = kinds.AutoImageProcessor.from_pretrained(self._folder, **local)
                    tokenizer = kinds.AutoTokenizer.from_pretrained(self._folder, **local)
                    model = kinds.AutoModelForImageTextToText.from_pretrained(
                        self._folder, use_safetensors=True, **local
                    )
                self._parts = freeze(model, self.device), processor, tokenizer
            except Exception as error:
                raise ConfigurationError(
                    f"captions='{PREFIX}{self.name}' cannot be loaded: {first_line(error)}"
                ) from error
        return self._parts


def load_captions(
    captions: CaptionsOption, *, device: str | torch.device = "cpu"
) -> tuple[CaptionVocabulary | None, Captioner | None]:
    """Return the vocabulary and the captioner that an option ``captions`` asks for; both are None for None.

    Args:
        captions: What :meth:`CaptionVocabulary.load` takes; "auto" for the packaged one that fits the class names;
            "wordnet" for kinds of the classes by an installed WordNet; or a function from PIL images to texts, or
            ``"captioner:<folder>"``, which come with a vocabulary of class names alone.
        device: Device of a model that is loaded.

    Raises:
        ConfigurationError: There is no such vocabulary, or the folder does not hold a captioner.

    >>> load_captions("general")[1] is None, load_captions(lambda images: ["a cat"] * len(images))[0].adjectives
    (True, ())
    """
    if captions is None:
        return None, None
    if isinstance(captions, str | Path) and str(captions).startswith(PREFIX):
        return CaptionVocabulary(), TransformersCaptioner(str(captions).removeprefix(PREFIX), device=device)
    if captions == AUTO:
        return RecognisedVocabulary(), None
    if captions == WORDNET:
        return load_wordnet_vocabulary(), None
    if isinstance(captions, str | Path | CaptionVocabulary):
        return CaptionVocabulary.load(captions), None
    if not callable(captions):
        raise ConfigurationError(f"captions must be a vocabulary or a function, got {type(captions).__name__}. {_FORM}")
    return CaptionVocabulary(), captions


def describe(captioner: Captioner, images: Sequence[Tensor]) -> list[str]:
    """Return the texts of a captioner for images (C, H, W) with values in [0, 1]; C is 1 or 3, sizes may differ.

    Raises:
        DataError: The captioner did not return one text for each image.
    """
    texts = captioner([as_pil(image) for image in images])
    name = captioner_name(captioner)
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise DataError(f"The captioner {name} must return a list of texts, got {type(texts).__name__}.")
    if len(texts) != len(images):
        raise DataError(f"The captioner {name} returned {len(texts)} texts for {len(images)} images.")
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"The captioner {name} must return texts, but one of them is {type(text).__name__}.")
    return list(texts)


def captioner_name(captioner: Captioner) -> str:
    """Return the name of a captioner for messages."""
    return str(getattr(captioner, "name", None) or getattr(captioner, "__name__", type(captioner).__name__))


def as_pil(image: Tensor) -> Image.Image:
    """Return an image (C, H, W) with values in [0, 1] as a PIL image in RGB; C is 1 or 3.

    Raises:
        DataError: The image has another shape.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise DataError(f"Images for a captioner must have the shape (1 or 3, H, W), got {tuple(image.shape)}.")
    pixels = (image.detach().cpu().float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _check_folder(folder: Path, name: str) -> None:
    """Check that a folder holds a model that can be loaded without running its code.

    Raises:
        ConfigurationError: It does not, or transformers is not installed.
    """
    given = f"captions='{PREFIX}{name}'"
    if importlib.util.find_spec("transformers") is None:
        raise ConfigurationError(f"{given} needs transformers: pip install 'lightning-failures[captioner]'.")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{given} is not a model of transformers: {first_line(error)}. {_FORM}") from error
    code = sorted(path.name for path in folder.glob("*.py"))
    if code or not isinstance(config, dict) or "auto_map" in config:
        raise ConfigurationError(
            f"{given} needs its own code ({', '.join(code) or 'auto_map'}), which is never run. Build the model"
            " yourself and pass a function from PIL images to texts."
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigurationError(f"{given} holds no weights as safetensors; other files may run code. {_FORM}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars of loading, which would break those of the Trainer."""
    import transformers

    logging: Any = transformers.utils.logging
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
