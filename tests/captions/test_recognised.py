"""Which packaged vocabulary a list of class names gets."""

import pytest
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

from lightning_failures.captions.grammar import CaptionVocabulary, known_vocabularies
from lightning_failures.captions.image_to_text import load_captions
from lightning_failures.captions.recognised import recognised
from lightning_failures.data.class_names import unique_class_names

CONDITIONS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax")
CONDITIONS += ("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"), "cifar10"),
        (tuple(unique_class_names(IMAGENET_CLASSNAMES)), "imagenet"),
        (tuple(IMAGENET_CLASSNAMES[5:20]), "imagenet"),
        (tuple(name for one in CONDITIONS for name in (f"no {one}", one)), "chestxray"),
        (("cat", "dog"), "general"),
        (("old", "young"), "celeba"),
        ((*IMAGENET_CLASSNAMES[5:20], "my cat"), "general"),
    ],
)
def test_recognised__by_all_names(names, expected):
    assert recognised(names) == expected


def test_recognised__every_vocabulary_by_its_own_names():
    for name in set(known_vocabularies()) - {"general"}:
        simple = name.removesuffix("-extended")  # the same classes, with further nouns
        assert recognised(tuple(CaptionVocabulary.load(name).classes)) == simple


def test_auto__takes_the_words_of_the_class_names():
    auto, captioner = load_captions("auto")
    assert captioner is None
    names = tuple(IMAGENET_CLASSNAMES[:12])
    assert auto.grammar_of("tench", names).captions()[0] == "a photo of a fish"
    assert auto.reference("tench", names) == "a photo of a tench"
    assert auto.grammar_of("cat", ("cat", "dog")).captions() == (
        CaptionVocabulary.load("general").grammar("cat").captions()
    )
