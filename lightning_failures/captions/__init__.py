"""Candidate captions, and their scores as descriptions of a failure direction.

Files, each importing only from those above it::

    grammar     The grammar that generates the captions of a class, and vocabularies for many classes
    recognised  The packaged vocabulary that fits a list of class names
    wordnet     Kinds of the thing that a noun names, from a WordNet that is installed: nouns for captions
    candidates  The candidate captions of each class, embedded on first use
    words       Words that captions of failures use more often than captions of correct images, or less often
    image_to_text  Captioners: functions from images to texts, and image-to-text models of transformers
    captioned   Candidate captions from the data: the words of captioned images of each class
    attributes  The attributes that captions name, and which captions are shortenings of others
    readings    How often flagged images show what a caption says, compared with all images of the class
    scoring     Scores and p-values of captions as descriptions of a failure direction
    shortest    The caption to show: the shortest one within noise of the best one
    assign      Captions for the classes of an analysis: selection of the classes, and their scored captions
    shared      Captions of the direction that all classes share: attributes without a class
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_failures.captions.candidates import caption_source
from lightning_failures.captions.captioned import captioned_source
from lightning_failures.captions.grammar import CaptionGrammar, CaptionVocabulary
from lightning_failures.captions.scoring import score_captions
from lightning_failures.core.moved import old_names

__all__ = ["CaptionGrammar", "CaptionVocabulary", "caption_source", "captioned_source", "score_captions"]

if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)
