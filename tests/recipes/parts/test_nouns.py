"""Extended nouns: captions of a vocabulary with kinds of each class, along the same directions."""

from __future__ import annotations

from dataclasses import replace

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.recipes.parts.nouns import extended_nouns


def test_nouns__captions_name_kinds_of_the_class(trained):
    names = ("dog", "ship", "truck")
    found = extended_nouns(replace(trained, setting=replace(trained.setting, captions="cifar10", class_names=names)))
    captions = set(CaptionVocabulary.load("cifar10-extended").grammar("ship").captions())
    assert found.texts["ship: hardest with extended nouns"] in captions
    assert found.texts["ship: easiest with extended nouns"] in captions
    assert 0 <= found.figures["error rate nearest to the hardest caption, extended nouns"] <= 1


def test_nouns__left_out_where_there_are_none(trained):
    assert "left out" in extended_nouns(trained).notes[0]
