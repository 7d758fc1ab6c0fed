"""Attributes from the phrases of vocabularies."""

import torch

from lightning_failures.captions.attributes import CaptionAttributes, divide, extended, shortened
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.captions.grammar import CaptionGrammar, CaptionVocabulary


def attributes_of(grammar):
    parts = grammar.parts()
    return tuple(parts), CaptionAttributes.of(ClassCaptions(tuple(parts), torch.zeros(0), torch.zeros(0), parts=parts))


def test_attributes__of_the_digits_are_tint_stroke_posture_and_background():
    texts, attributes = attributes_of(CaptionVocabulary.load("digits").grammar("eight"))
    assert {frozenset(values) for values in attributes.values.values()} == {
        frozenset(["red", "orange", "yellow", "lime", "green", "cyan", "blue", "purple", "pink", "brown"]),
        frozenset(["thin", "thick"]),
        frozenset(["upright", "slanted"]),
        frozenset(["on a black background", "on a white background", "on a gray background"]),
    }
    full = texts.index("a photo of a thin slanted orange eight on a gray background")
    assert attributes.words[full] == ("thin", "slanted", "orange", "on a gray background")
    short = attributes.find("eight", {"orange"})
    assert texts[short] == "a photo of an orange eight"
    assert attributes.find("eight", {"orange", "red"}) is None
    assert attributes.find("eight", ()) is None  # it is the reference


def test_attributes__of_general_words_are_one_adjective_and_one_phrase():
    texts, attributes = attributes_of(CaptionVocabulary.load("general").grammar("dog"))
    assert "black and white" in attributes.values["blurry"]
    assert "at night" in attributes.values["on grass"]
    assert "blurry" not in attributes.values["on grass"]
    assert max(map(len, attributes.words.values())) == 2
    longer = attributes.lengthened("dog", {"blurry"})
    assert len(longer) == len(attributes.values["on grass"])
    assert all("blurry dog " in texts[index] for index in longer)
    assert set(attributes.lengthened("dog", (), by_one=True)) == {
        index for index, words in attributes.words.items() if len(words) == 1
    }


def test_attributes__keep_to_the_noun():
    texts, attributes = attributes_of(CaptionGrammar(["car", "automobile"], ["red", "blue"], ["on a road"]))
    assert texts[attributes.find("automobile", ())] == "a photo of an automobile"
    assert {attributes.nouns[index] for index in attributes.lengthened("automobile", ())} == {"automobile"}


def test_attributes__of_captions_without_a_grammar_there_are_none():
    attributes = CaptionAttributes.of(ClassCaptions(("a red cat", "a cat"), torch.zeros(2, 3), torch.zeros(3)))
    assert attributes.words == attributes.values == {}


def test_divide__the_finest_division_or_none():
    known = {"low", "low contrast", "contrast", "red"}
    assert divide("low contrast red", known) == ("low", "contrast", "red")
    assert divide("low contrast red", known - {"low", "contrast"}) == ("low contrast", "red")
    assert divide("dark red", known) == ("dark red",)
    assert divide("", known) == ()


def test_shortened_and_extended__by_words_in_order_without_articles():
    texts = ["an orange cat", "a cat", "a cat on grass", "a thin orange cat on grass", "grass cat"]
    assert shortened(texts, texts[3]) == (0, 1, 2)
    assert extended(texts, texts[0]) == (3,)
    assert shortened(texts, texts[1]) == ()
